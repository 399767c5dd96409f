"""Conversations that come back: what does the first token of the next turn cost when nothing of them is in memory?

python -m benchmarks.returning [--model standin] [--cache sqlite|redis] [--sessions 5] [--side samovar|llama-server]:
conversations of 1 000 tokens are held on one engine, one after the other; then each says 20 tokens more, and again
after everything was killed and started anew. Beside it: prompts as long, of which nothing is cached.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.clients import ChatCompletions, Samovar, Side, Turn
from benchmarks.figures import Figure, publish
from benchmarks.loads import MODELS, TEMPLATE, Subject, subject
from benchmarks.machine import machine
from benchmarks.servers import Server, cache_settings, leave_on_sigterm, llama_server, samovar

HISTORY, NEW, ANSWER = 1000, 20, 8
UNCACHED: Final = 5
SETTLE_SECONDS: Final = 2.0
"""What is written in the background gets this long before the power cut."""
GOAL: Final = 0.08
"""First token of a returning conversation, over that of a prompt as long of which nothing is cached."""
FETCH: Final = {"sqlite": 40.0, "redis": 25.0}
"""Milliseconds that fetching and restoring may take."""
RIVAL_CONTEXT: Final = 4096


@dataclass
class Guest:
    """One conversation, wherever it goes on."""

    number: int
    place: Any = None
    seen: int = 0
    """Tokens of it that the model saw: all but the one that it wrote last."""


@dataclass
class Visits:
    """Turns of conversations that came back."""

    seen: int = 0
    cached: int = 0
    firsts: list[float] = field(default_factory=list)


class House:
    """One side, and the conversations that it is to remember."""

    def __init__(self, subject: Subject, guests: int) -> None:
        """Nobody has come yet."""
        self._subject = subject
        self._guests = [Guest(number) for number in range(guests)]
        self._strangers = 0

    async def greet(self, side: Side) -> None:
        """Load the engine."""
        await self._stranger(side, NEW)

    async def meet(self, side: Side) -> None:
        """Hold the first turn of every conversation, one after the other. Raises TurnFailedError."""
        for guest in self._guests:
            await self._visit(side, guest, HISTORY)

    async def welcome(self, side: Side) -> tuple[Visits, Visits]:
        """Everybody's return, and another turn at once, when all is at hand. Raises TurnFailedError."""
        returns, again = Visits(), Visits()
        for guest in self._guests:
            for visits in (returns, again):
                visits.seen += guest.seen
                turn = await self._visit(side, guest, NEW)
                visits.cached += turn.cached
                visits.firsts.append(turn.first)
        return returns, again

    async def strangers(self, side: Side) -> list[float]:
        """Seconds to the first token of prompts as long as a return. Raises TurnFailedError."""
        return [(await self._stranger(side, HISTORY + ANSWER + NEW)).first for _ in range(UNCACHED)]

    async def _stranger(self, side: Side, tokens: int) -> Turn:
        self._strangers += 1
        return await self._visit(side, Guest(-self._strangers), tokens)

    async def _visit(self, side: Side, guest: Guest, tokens: int) -> Turn:
        text = self._subject.text(tokens - TEMPLATE, random.Random(f"{guest.number} {guest.seen}"))
        async with side.open("", self._subject.bias, place=guest.place) as session:
            turn = await session.ask(text, ANSWER)
            guest.place, guest.seen = session.place, turn.prompt + turn.output - 1
        return turn


Start = Callable[[], AbstractContextManager[Server]]


def measure(name: str, house: House, start: Start, side: Callable[[Server], Side], fetch: float | None) -> list[Figure]:
    """All figures of one side, over one power cut. Raises ServerError, TurnFailedError."""
    with start() as server:
        before = uvloop.run(_before(house, side(server)))
        server.kill()
    with start() as server:
        uncached, (returns, again) = uvloop.run(_after(house, side(server)))
    computed = statistics.median(uncached)
    restore = [1000 * (first - statistics.median(again.firsts)) for first in returns.firsts]

    def figure(what: str, values: list[float], unit: str, goal: float | None = None, *, high: bool = False) -> Figure:
        label = f"{name}, {len(returns.firsts)} conversations of 1 000 + 20: {what}"
        promised = goal if fetch is not None else None
        return Figure(benchmark="returning", name=label, values=values, unit=unit, goal=promised, high=high)

    def beside(visits: Visits) -> list[float]:
        return [first / computed for first in visits.firsts]

    cut = "after a power cut"
    return [
        figure("first token, nothing cached", uncached, "s"),
        figure("first token on return", before.firsts, "s"),
        figure("return over nothing cached", beside(before), "x", 1.5 * GOAL),
        figure(f"first token on return {cut}", returns.firsts, "s"),
        figure(f"return over nothing cached, {cut}", beside(returns), "x", GOAL),
        figure("fetch and restore: return minus an immediate turn", restore, "ms", fetch),
        figure("share of history from the cache", [before.cached / before.seen], "", 1.0, high=True),
        figure(f"share of history from the cache {cut}", [returns.cached / returns.seen], "", 1.0, high=True),
    ]


async def _before(house: House, side: Side) -> Visits:
    await house.greet(side)
    await house.meet(side)
    returns, _ = await house.welcome(side)
    await asyncio.sleep(SETTLE_SECONDS)
    return returns


async def _after(house: House, side: Side) -> tuple[list[float], tuple[Visits, Visits]]:
    await house.greet(side)
    return await house.strangers(side), await house.welcome(side)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="standin")
    parser.add_argument("--cache", choices=FETCH, default="sqlite")
    parser.add_argument("--sessions", type=int, default=5)
    parser.add_argument("--side", choices=("samovar", "llama-server"), default="samovar")
    options = parser.parse_args()
    leave_on_sigterm()
    print(machine())
    model = subject(options.model)
    house = House(model, options.sessions)
    if options.side == "llama-server":
        start: Start = partial(llama_server, model.path, streams=1, context=RIVAL_CONTEXT)
        rival = partial(ChatCompletions, cache_prompt=True)
        publish(measure(f"{model.name}, llama-server", house, start, rival, None))
        return
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="samovar-bench-")))
        settings = stack.enter_context(cache_settings(options.cache))
        start = partial(samovar, model.path, state=state, engines=1, **settings)
        publish(measure(f"{model.name}, {options.cache}", house, start, Samovar, FETCH[options.cache]))


if __name__ == "__main__":
    main()
