"""Memory of the gateway and its engines, and the latency of the first request after all engines were unloaded.

python -m benchmarks.memory [--model standin]: resident memory of an engine with 4 096 KV cells after a first answer,
and when long prompts have filled the cells, which take memory on first use; the memory of a second engine in both
cases; the total under load, and at rest after the engines were unloaded; and the time from there to the first token of
a prompt of 20 tokens.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import psutil
import uvloop

from benchmarks.clients import Samovar, Turn
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import TEMPLATE, Subject, subject
from benchmarks.machine import cores
from benchmarks.servers import Server, samovar

ROUNDS: Final = 5
IDLE_SECONDS: Final = 1
UNLOAD_SECONDS: Final = 30.0
GOALS: Final = {"standin": (700.0, 200.0, 160.0), "embedded": (None, None, 120.0)}
"""Goals in MB: an engine and a further engine, both with all cells used, and the total at rest."""
CELLS: Final = 4096
ANSWER: Final = 16
SPARE: Final = 128
"""Tokens reserved for the template and its system prompt in a prompt that fills the cells."""


async def turns(server: Server, subject: Subject, streams: int, tokens: int, seed: int) -> list[Turn]:
    """Run `streams` concurrent answers to texts of `tokens` tokens."""

    async def one(number: int) -> Turn:
        text = subject.text(tokens - TEMPLATE, random.Random(f"{seed} {number}"))
        async with Samovar(server).open("", subject.bias, store=False) as session:
            return await session.ask(text, ANSWER)

    return await asyncio.gather(*map(one, range(streams)))


def megabytes(processes: Sequence[psutil.Process], kind: str) -> list[float]:
    """Return `rss`, `pss` or `uss` (private) of each process, in 10^6 bytes."""
    return [getattr(process.memory_full_info(), kind) / 1e6 for process in processes]


def wait_for_rest(server: Server) -> None:
    """Wait until no engine runs."""
    began = time.monotonic()
    while server.engines():
        if time.monotonic() - began > UNLOAD_SECONDS:
            raise SystemExit(f"the engines were not unloaded within {UNLOAD_SECONDS:g} s")
        time.sleep(0.05)


def fill(server: Server, subject: Subject, engines: int) -> None:
    """Fill all cells of all `engines` with one concurrent prompt each; no engine has room for two."""
    for turn in uvloop.run(turns(server, subject, engines, CELLS - SPARE, 2)):
        if turn.prompt + turn.output < 0.95 * CELLS:
            raise SystemExit(f"only {turn.prompt + turn.output} of {CELLS} cells were used")


def measure(subject: Subject) -> list[Figure]:
    """Return all figures. Raises LaunchError, TurnFailedError."""
    engine, second, rest = GOALS[subject.name]
    figures = []

    def add(name: str, values: list[float], unit: str = "MB", goal: float | None = None) -> None:
        figures.append(Figure(benchmark="memory", name=f"{subject.name}: {name}", values=values, unit=unit, goal=goal))

    with samovar(subject.path, engine_memory=64 << 20, idle_unload=0, preload=False) as server:  # 64 MiB: one context
        uvloop.run(turns(server, subject, 1, 20, 0))
        add("an engine with 4 096 cells, after 20 tokens, RSS", megabytes(server.engines(), "rss"))
        uvloop.run(turns(server, subject, 2 * cores(), 20, 1))
        engines = server.engines()
        if len(engines) < 2:
            raise SystemExit("no second engine was started: the memory of a further engine cannot be measured")
        add("each further engine, after 20 tokens, private", [megabytes(engines, "uss")[-1]])
        fill(server, subject, len(engines))
        add("an engine with 4 096 cells, all used, RSS", megabytes(engines, "rss"), goal=engine)
        add("each further engine, all cells used, private", [megabytes(engines, "uss")[-1]], goal=second)
        add("all engines and the gateway, proportional", [sum(megabytes([server.process, *engines], "pss"))])
    with samovar(subject.path, idle_unload=IDLE_SECONDS, preload=False) as server:
        uvloop.run(turns(server, subject, 1, 20, 0))
        resting, firsts = [], []
        for seed in range(1, ROUNDS + 1):
            wait_for_rest(server)
            resting += megabytes([server.process], "rss")
            firsts += [turn.first for turn in uvloop.run(turns(server, subject, 1, 20, seed))]
        add("at rest, engines unloaded, total", resting, goal=rest)
        add("first token of 20, from rest", firsts, "s", 1.2)
    return figures


def main() -> None:
    """Measure and print."""
    options = start_benchmark(option_parser(__doc__, model="standin"))
    publish(measure(subject(options.model)))


if __name__ == "__main__":
    main()
