"""The cost of storing KV in the background: tokens per second of streams with and without it, in alternation.

python -m benchmarks.writeback [--model standin] [--cache sqlite|redis] [--streams 2 4] [--pairs 5]: documents of 150
to 300 new tokens with answers of 64, so that much is stored for each generated token; one after the other on each
connection, once with `store` and once without. Uses one engine, because only stored conversations may move to another.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import uvloop

from benchmarks.clients import Samovar, TurnFailedError
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import LOADS, Conversation, Subject, conversations, subject
from benchmarks.servers import cache_settings, samovar

EACH: Final = 2
"""Answers per connection."""
GOAL: Final = 0.95
"""Lower bound for tokens per second with `store`, relative to without."""


async def speed(side: Samovar, subject: Subject, texts: list[list[Conversation]], *, store: bool) -> float:
    """Return the output tokens per second of one stream per list in `texts`. Raises TurnFailedError."""
    load = LOADS["document"]

    async def stream(own: list[Conversation]) -> int:
        output = 0
        for conversation in own:
            async with side.open(conversation.system, subject.bias, store=store) as session:
                output += (await session.ask(conversation.turns[0], load.answer)).output
        return output

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream(own)) for own in texts]
    return sum(task.result() for task in tasks) / (time.perf_counter() - began)


async def measure(side: Samovar, subject: Subject, streams: int, pairs: int) -> tuple[list[float], list[float]]:
    """Return speeds with `store` and without, for texts of the same lengths that all differ. Raises TurnFailedError."""
    speeds: dict[bool, list[float]] = {True: [], False: []}
    seed = time.time_ns()
    for number in range(-1, pairs):  # the first round is a warm-up
        for store in (True, False) if number % 2 else (False, True):
            seed += 1
            flat = conversations(LOADS["document"], subject, streams * EACH, seed)
            texts = [flat[start::streams] for start in range(streams)]
            found = await speed(side, subject, texts, store=store)
            if number >= 0:
                speeds[store].append(found)
    return speeds[True], speeds[False]


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="standin")
    parser.add_argument("--cache", choices=("sqlite", "redis"), default="sqlite")
    parser.add_argument("--streams", type=int, nargs="+", default=[4])
    parser.add_argument("--pairs", type=int, default=5)
    options = start_benchmark(parser)
    model = subject(options.model)
    with cache_settings(options.cache) as settings, samovar(model.path, engines=1, **settings) as server:
        side = Samovar(server)
        for streams in options.streams:
            try:
                stored, unstored = uvloop.run(measure(side, model, streams, options.pairs))
            except* TurnFailedError as failed:
                raise SystemExit(str(failed.exceptions[0])) from failed
            name = f"{model.name}, {options.cache}, {streams} streams of documents"
            ratios = [a / b for a, b in zip(stored, unstored, strict=True)]
            over = f"{name}: storing over not storing"
            publish(
                [
                    Figure(benchmark="writeback", name=f"{name}: not storing", values=unstored, unit="tok/s"),
                    Figure(
                        benchmark="writeback", name=f"{name}: storing in the background", values=stored, unit="tok/s"
                    ),
                    Figure(benchmark="writeback", name=over, values=ratios, unit="x", goal=GOAL, high=True),
                ]
            )


if __name__ == "__main__":
    main()
