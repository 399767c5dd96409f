"""Memory of the gateway and its engines, and what coming back from rest costs.

python -m benchmarks.memory [--model standin]: resident memory of an engine with 4 096 KV cells after a first answer,
and when long prompts have filled them, since cells take memory when they are first used; what a second engine adds,
both times; the whole, under work and at rest, after the engines were unloaded; and the time from there to the first
token of a prompt of 20 tokens.
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

from benchmarks.clients import Samovar, Turn
from benchmarks.figures import Figure, publish
from benchmarks.loads import MODELS, TEMPLATE, Subject, subject
from benchmarks.machine import cores, machine
from benchmarks.servers import Server, leave_on_sigterm, samovar

ROUNDS: Final = 5
IDLE_SECONDS: Final = 1
UNLOAD_SECONDS: Final = 30.0
GOALS: Final = {"standin": (700.0, 200.0, 160.0), "embedded": (None, None, 120.0)}
"""MB of an engine and of what a second one adds, cells filled, and of everything at rest."""
CELLS: Final = 4096
ANSWER: Final = 16
SPARE: Final = 128
"""Tokens for the template and its system prompt, which a prompt that fills the cells has to leave."""


async def turns(server: Server, subject: Subject, streams: int, tokens: int, seed: int) -> list[Turn]:
    """So many answers at once to texts of so many tokens."""

    async def one(number: int) -> Turn:
        text = subject.text(tokens - TEMPLATE, random.Random(f"{seed} {number}"))
        async with Samovar(server).open("", subject.bias, store=False) as session:
            return await session.ask(text, ANSWER)

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


def fill(server: Server, subject: Subject, engines: int) -> None:
    """Use all cells of all `engines`: a prompt for each, at once, of which none has room for two."""
    for turn in uvloop.run(turns(server, subject, engines, CELLS - SPARE, 2)):
        if turn.prompt + turn.output < 0.95 * CELLS:
            raise SystemExit(f"only {turn.prompt + turn.output} of {CELLS} cells were used")


def measure(subject: Subject) -> list[Figure]:
    """All figures. Raises ServerError, TurnFailedError."""
    engine, second, rest = GOALS[subject.name]
    figures = []

    def add(name: str, values: list[float], unit: str = "MB", goal: float | None = None) -> None:
        figures.append(Figure(benchmark="memory", name=f"{subject.name}: {name}", values=values, unit=unit, goal=goal))

    with samovar(subject.path, engine_memory=1, idle_unload=0) as server:  # no more cells than one context
        uvloop.run(turns(server, subject, 1, 20, 0))
        add("an engine with 4 096 cells, after 20 tokens, RSS", megabytes(server.engines(), "rss"))
        uvloop.run(turns(server, subject, 2 * cores(), 20, 1))
        engines = server.engines()
        if len(engines) < 2:
            raise SystemExit("no second engine came up: the memory of a further engine cannot be measured")
        add("each further engine, after 20 tokens, private", [megabytes(engines, "uss")[-1]])
        fill(server, subject, len(engines))
        add("an engine with 4 096 cells, all used, RSS", megabytes(engines, "rss"), goal=engine)
        add("each further engine, all cells used, private", [megabytes(engines, "uss")[-1]], goal=second)
        add("all engines and the gateway, proportional", [sum(megabytes([server.process, *engines], "pss"))])
    with samovar(subject.path, idle_unload=IDLE_SECONDS) as server:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="standin")
    options = parser.parse_args()
    leave_on_sigterm()
    print(machine())
    publish(measure(subject(options.model)))


if __name__ == "__main__":
    main()
