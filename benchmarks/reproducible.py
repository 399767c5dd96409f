"""The cost of `reproducible: true`: the time to the first token and the tokens per second, against a plain request.

python -m benchmarks.reproducible [--model embedded] [--rounds 5]: each round asks one plain and one reproducible
question with new texts of the same length, and then a second turn of each conversation, alone on one gateway.
"""

from __future__ import annotations

import random
from typing import Any, Final

import uvloop

from benchmarks.clients import Samovar, Turn
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import Subject, subject
from benchmarks.servers import Server, samovar

PROMPT, MORE, ANSWER = 400, 40, 64
"""Tokens of the first and of the second question, and of each answer."""
WAYS: Final[dict[str, dict[str, Any]]] = {"plain": {}, "reproducible": {"reproducible": True}}


async def two_turns(server: Server, subject: Subject, source: random.Random, fields: dict[str, Any]) -> list[Turn]:
    """Hold a conversation of two turns. Raises TurnFailedError."""
    async with Samovar(server).open("", subject.bias, **fields) as session:
        return [await session.ask(subject.text(length, source), ANSWER) for length in (PROMPT, MORE)]


async def measure(server: Server, subject: Subject, rounds: int) -> dict[str, list[list[Turn]]]:
    """Return the turns of each round, by kind of request."""
    source = random.Random(1)
    await two_turns(server, subject, source, {})  # loads the model
    turns: dict[str, list[list[Turn]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, fields in WAYS.items():
            turns[way].append(await two_turns(server, subject, source, fields))
    return turns


def figures(name: str, turns: dict[str, list[list[Turn]]]) -> list[Figure]:
    """Return the figures of both kinds, and the cost."""
    speeds = {
        way: [(turn.output - 1) / (turn.ended - turn.deltas[0]) for turn, _ in found] for way, found in turns.items()
    }
    rows: list[tuple[str, list[float], str]] = []
    for way, found in turns.items():
        for number, which in enumerate(("first", "second")):
            rows.append((f"{way}: first token of the {which} turn", [pair[number].first for pair in found], "s"))
        rows.append((f"{way}: answer", speeds[way], "tok/s"))
    ratios = [slow / fast for slow, fast in zip(speeds["reproducible"], speeds["plain"], strict=True)]
    rows.append(("reproducible over plain: answer", ratios, "x"))
    return [
        Figure(benchmark="reproducible", name=f"{name}, {label}", values=values, unit=unit)
        for label, values, unit in rows
    ]


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="embedded")
    parser.add_argument("--rounds", type=int, default=5)
    options = start_benchmark(parser)
    model = subject(options.model)
    with samovar(model.path) as server:
        publish(figures(model.name, uvloop.run(measure(server, model, options.rounds))))


if __name__ == "__main__":
    main()
