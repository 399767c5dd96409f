"""Speculation: tokens per second of answers that repeat their questions, and of others, against llama-server.

python -m benchmarks.speculation [--model FILE] [--streams 1 2 4] [--tasks code prose] [--rounds 5]: four servers answer
the same questions one after the other, in changing order: Samovar, Samovar without speculation, llama-server, and
llama-server with drafts from n-grams. FILE must be a model that can do the tasks; the embedded one hardly can.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.clients import ChatCompletions, Samovar, Side
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import MODELS
from benchmarks.machine import single_row
from benchmarks.servers import llama_server, samovar
from benchmarks.tasks import EDITS, TASKS

ANSWER: Final = 250
NGRAMS: Final = (
    "--spec-type", "ngram-mod", "--spec-ngram-mod-n-min", "2", "--spec-ngram-mod-n-max", "16",
    "--spec-ngram-mod-n-match", "8",
)  # fmt: skip
"""The fastest of llama-server's settings on these tasks."""
GOALS: Final = {
    ("edits", "llama-server"): {1: 2.2, 2: 2.0, 4: 1.6},
    ("edits", "llama-server with n-grams"): {1: 1.1, 2: 1.15, 4: 1.15},
    ("prose", "no speculation"): {1: 0.98, 2: 0.98, 4: 0.99},
}


async def speed(side: Side, questions: list[str]) -> float:
    """Ask all questions at the same time; return the output tokens per second. Raises TurnFailedError."""

    async def ask(question: str) -> int:
        async with side.open("", {}) as session:
            return (await session.ask(question, ANSWER)).output

    began = time.perf_counter()
    outputs = await asyncio.gather(*map(ask, questions))
    return sum(outputs) / (time.perf_counter() - began)


Speeds = dict[str, dict[str, list[float]]]
"""Tokens per second, by task and server, of each round."""


async def measure(sides: dict[str, Side], streams: int, tasks: list[str], rounds: int) -> Speeds:
    """Return the speeds of all servers. Raises TurnFailedError."""
    found: Speeds = {task: {name: [] for name in sides} for task in tasks}
    for side in sides.values():
        await speed(side, ["Say hello."] * streams)
    for number, task in itertools.product(range(rounds), tasks):
        source = random.Random(f"{task} {streams} {number}")
        questions = [TASKS[task](source) for _ in range(streams)]
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            found[task][name].append(await speed(sides[name], questions))
    return found


def figures(streams: int, found: Speeds) -> list[Figure]:
    """Return the speeds, and the ratios to the other servers by kind of task."""
    rows = [
        Figure(benchmark="speculation", name=f"x{streams}, {task}: {name}", values=values, unit="tok/s")
        for task, speeds in found.items()
        for name, values in speeds.items()
    ]
    kinds = {task: "edits" if task in EDITS else task for task in found}
    others = [name for name in next(iter(found.values())) if name != "Samovar"]
    for kind, other in itertools.product(dict.fromkeys(kinds.values()), others):
        tasks = [task for task in found if kinds[task] == kind]
        ratios = [
            statistics.geometric_mean(found[task]["Samovar"][i] / found[task][other][i] for task in tasks)
            for i in range(len(found[tasks[0]][other]))
        ]
        name, goal = f"x{streams}, {kind}: Samovar against {other}", GOALS.get((kind, other), {}).get(streams)
        rows.append(Figure(benchmark="speculation", name=name, values=ratios, unit="x", goal=goal, high=True))
    return rows


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__)
    parser.add_argument("--model", default="embedded", help="embedded, or a GGUF file")
    parser.add_argument("--streams", type=int, nargs="+", default=(1, 2, 4), help="concurrent questions")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=5)
    options = start_benchmark(parser)
    model = MODELS[options.model]() if options.model in MODELS else Path(options.model).expanduser()
    print(f"{model.name}: a step of one row takes {single_row(model) * 1000:.1f} ms", flush=True)
    for streams in options.streams:
        with ExitStack() as stack:
            drafting = stack.enter_context(samovar(model, speculation=True))
            plain = stack.enter_context(samovar(model, speculation=False))
            theirs = stack.enter_context(llama_server(model, streams=streams))
            ngrams = stack.enter_context(llama_server(model, *NGRAMS, streams=streams))
            sides: dict[str, Side] = {
                "Samovar": Samovar(drafting),
                "no speculation": Samovar(plain),
                "llama-server": ChatCompletions(theirs, cache_prompt=True),
                "llama-server with n-grams": ChatCompletions(ngrams, cache_prompt=True),
            }
            publish(figures(streams, uvloop.run(measure(sides, streams, options.tasks, options.rounds))))


if __name__ == "__main__":
    main()
