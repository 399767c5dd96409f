"""Streams over the WebSocket compared with bare llama.cpp loops: how much of the machine's speed reaches users?

python -m benchmarks.stream [--model standin] [--streams 2]: start-up, first token, and tokens per second of concurrent
answers, alternating with the same number of bare loops in separate processes, which share the cores evenly.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

import uvloop

from benchmarks.bare import NEW_TOKENS, PROMPT_TOKENS
from benchmarks.clients import Samovar, Side, Turn
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import TEMPLATE, Subject, subject
from benchmarks.machine import cores
from benchmarks.servers import samovar

ROUNDS: Final = 5


@contextmanager
def loops(subject: Subject, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that run the bare loop once for each line on stdin."""
    command = [sys.executable, "-m", "benchmarks.bare", str(subject.path), str(max(1, cores() // count))]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    try:
        for process in processes:
            _read(process.stdout)
        yield processes
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def loop(processes: list[subprocess.Popen[str]]) -> float:
    """Run all bare loops concurrently and return their total tokens per second."""
    for process in processes:
        assert process.stdin is not None  # noqa: S101 - started with a pipe
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(float(_read(process.stdout)) for process in processes)


def _read(output: IO[str] | None) -> str:
    assert output is not None  # noqa: S101 - started with a pipe
    line = output.readline()
    if not line:
        raise SystemExit("a bare loop exited unexpectedly")
    return line


async def stream(side: Side, subject: Subject, streams: int, seed: int) -> list[Turn]:
    """Run `streams` concurrent answers to prompts as long as the bare loop's."""

    async def one(number: int) -> Turn:
        text = subject.text(PROMPT_TOKENS - TEMPLATE, random.Random(f"{seed} {number}"))
        # Without `store`, cells are freed with the connection: every round starts with empty cells, like the bare loop.
        async with side.open("", subject.bias, store=False) as session:
            return await session.ask(text, NEW_TOKENS)

    return await asyncio.gather(*map(one, range(streams)))


def speed(turns: list[Turn]) -> float:
    """Return the tokens per second after the first token, over all streams."""
    return sum((turn.output - 1) / (turn.deltas[-1] - turn.deltas[0]) for turn in turns)


def measure(subject: Subject, streams: int) -> list[Figure]:
    """Return all figures for one number of streams. Raises LaunchError, TurnFailedError."""
    starts, colds, bares, rounds = [], [], [], []
    for seed in range(3):
        with samovar(subject.path) as server:
            starts.append(server.ready_seconds)
            colds.append(uvloop.run(stream(Samovar(server), subject, 1, -seed))[0].first)
    with samovar(subject.path) as server, loops(subject, streams) as processes:
        uvloop.run(stream(Samovar(server), subject, streams, 0))
        for seed in range(1, ROUNDS + 1):
            bares.append(loop(processes))
            rounds.append(uvloop.run(stream(Samovar(server), subject, streams, seed)))
    speeds = [speed(turns) for turns in rounds]
    ratios = [ours / theirs for ours, theirs in zip(speeds, bares, strict=True)]

    def figure(name: str, values: list[float], unit: str, goal: float | None = None) -> Figure:
        where = f"{subject.name}, {streams} streams: {name}"
        return Figure(benchmark="stream", name=where, values=values, unit=unit, goal=goal, high=True)

    return [
        figure("start of the gateway to readyz", starts, "s"),
        figure("first token, engine load included", colds, "s"),
        figure("first token, engine loaded", [turn.first for turns in rounds for turn in turns], "s"),
        figure("bare loops", bares, "tok/s"),
        figure("over the WebSocket", speeds, "tok/s"),
        figure("share of the bare loops' speed", ratios, "", 0.9),
    ]


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="embedded")
    parser.add_argument("--streams", type=int, default=1)
    options = start_benchmark(parser)
    publish(measure(subject(options.model), options.streams))


if __name__ == "__main__":
    main()
