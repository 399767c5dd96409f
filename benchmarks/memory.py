"""Memory of the gateway and its engines, and what coming back from rest costs.

python -m benchmarks.memory [--model standin]: resident memory of an engine with 4 096 KV cells after a first answer;
what a second one adds; the whole, under work and at rest, after the engines were unloaded; and the time from there to
the first token of a prompt of 20 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import psutil
import uvloop

from benchmarks.clients import Samovar
from benchmarks.figures import Figure, tell
from benchmarks.loads import MODELS, TEMPLATE, Subject, subject
from benchmarks.machine import cores, machine
from benchmarks.servers import Server, leave_on_sigterm, samovar

ROUNDS: Final = 5
IDLE_SECONDS: Final = 1
UNLOAD_SECONDS: Final = 30.0
GOALS: Final = {"standin": (700.0, 200.0, 160.0), "embedded": (None, None, 120.0)}
"""MB of an engine, of what a second one adds, of everything at rest."""


async def answers(server: Server, subject: Subject, streams: int, tokens: int, seed: int) -> list[float]:
    """Seconds to the first token of so many answers at once."""

    async def one(number: int) -> float:
        text = subject.text(tokens - TEMPLATE, random.Random(f"{seed} {number}"))
        async with Samovar(server).open("", subject.bias, store=False) as session:
            return (await session.ask(text, 16)).first

    return await asyncio.gather(*map(one, range(streams)))


def megabytes(processes: Sequence[psutil.Process], kind: str) -> list[float]:
    """`rss`, `pss` or `uss` (private) of each process, 10^6 bytes."""
    return [getattr(process.memory_full_info(), kind) / 1e6 for process in processes]


def wait_for_rest(server: Server) -> None:
    """Until no engine runs."""
    began = time.monotonic()
    while server.engines():
        if time.monotonic() - began > UNLOAD_SECONDS:
            raise SystemExit("the engines were not unloaded")
        time.sleep(0.05)


def measure(subject: Subject) -> list[Figure]:
    """All figures. Raises ServerError, TurnFailedError."""
    engine, second, rest = GOALS[subject.name]
    figures = []

    def add(name: str, values: list[float], unit: str = "MB", goal: float | None = None) -> None:
        figures.append(Figure(benchmark="memory", name=f"{subject.name}: {name}", values=values, unit=unit, goal=goal))

    with samovar(subject.path, engine_memory=1, idle_unload=0) as server:  # no more cells than one context
        uvloop.run(answers(server, subject, 1, 20, 0))
        add("an engine with 4 096 cells, RSS", megabytes(server.engines(), "rss"), goal=engine)
        uvloop.run(answers(server, subject, 2 * cores(), 20, 1))
        engines = server.engines()
        if len(engines) > 1:
            add("what another engine adds, private", [megabytes(engines, "uss")[-1]], goal=second)
        add("all engines and the gateway, proportional", [sum(megabytes([server.process, *engines], "pss"))])
    with samovar(subject.path, idle_unload=IDLE_SECONDS) as server:
        uvloop.run(answers(server, subject, 1, 20, 0))
        resting, firsts = [], []
        for seed in range(1, ROUNDS + 1):
            wait_for_rest(server)
            resting += megabytes([server.process], "rss")
            firsts += uvloop.run(answers(server, subject, 1, 20, seed))
        add("at rest, engines unloaded, in all", resting, goal=rest)
        add("first token of 20, from rest", firsts, "s", 1.2)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="standin")
    options = parser.parse_args()
    leave_on_sigterm()
    print(machine())
    tell(measure(subject(options.model)))


if __name__ == "__main__":
    main()
