"""Cold start: how long does the first request after a start wait for its first token, compared with a warm one?

python -m benchmarks.coldstart [--model embedded] [--rounds 5]: each round starts a gateway with a new state folder, and
with instructions of the operator. A request comes as soon as the gateway is ready, or after a pause, as users need to
open a page and type; further requests, each with another text of the same length, are warm. Rounds alternate between
both, and are repeated without preloading.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Final

import uvloop

from benchmarks.clients import Samovar
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import Subject, subject
from benchmarks.servers import Server, samovar

INSTRUCTIONS, TURN, ANSWER = 160, 24, 8
WARM: Final = 4
"""Warm requests of a round, of which the median counts. One more comes before them."""
PAUSES: Final = (0.0, 5.0)
"""Seconds between readiness and the first request."""
GOAL: Final = 1.3
"""Upper bound for the first token of the first request, relative to a warm one, after the longer pause."""


async def first_tokens(server: Server, subject: Subject, source: random.Random) -> list[float]:
    """Return the seconds to the first token of new conversations, one after the other. Raises TurnFailedError."""
    seconds = []
    for _ in range(WARM + 2):
        async with Samovar(server).open("", subject.bias) as session:
            seconds.append((await session.ask(subject.text(TURN, source), ANSWER)).first)
    return seconds


def start(subject: Subject, number: int, *, pause: float, preload: bool) -> tuple[float, float]:
    """Start a gateway; return the seconds to the first token of its first request, and of a warm one."""
    source = random.Random(number)
    instructions = subject.text(INSTRUCTIONS, random.Random("instructions"))
    with samovar(subject.path, instructions=instructions, preload=preload) as server:

        async def ask() -> list[float]:
            await asyncio.sleep(pause)
            return await first_tokens(server, subject, source)

        first, _, *warm = uvloop.run(ask())
    return first, statistics.median(warm)


def figures(name: str, what: str, pairs: Sequence[tuple[float, float]], goal: float | None) -> list[Figure]:
    """Return the figures of one way to start."""
    columns = {
        "first token of the first request": ([first for first, _ in pairs], "s", None),
        "of a warm one": ([warm for _, warm in pairs], "s", None),
        "first over warm": ([first / warm for first, warm in pairs], "x", goal),
    }
    return [
        Figure(benchmark="coldstart", name=f"{name}, {what}: {label}", values=values, unit=unit, goal=bound)
        for label, (values, unit, bound) in columns.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="embedded")
    parser.add_argument("--rounds", type=int, default=5)
    options = start_benchmark(parser)
    model = subject(options.model)
    ways = list(itertools.product(PAUSES, (True, False)))
    pairs: dict[tuple[float, bool], list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(options.rounds):
        for pause, preload in ways:
            pairs[pause, preload].append(start(model, number, pause=pause, preload=preload))
    for pause, preload in ways:
        when = f"{pause:g} s after the start" if pause else "at once"
        goal = GOAL if preload and pause else None
        publish(figures(model.name, when if preload else f"{when}, not preloaded", pairs[pause, preload], goal))


if __name__ == "__main__":
    main()
