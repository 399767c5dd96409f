"""Returning conversations: time to first token of the next turn when nothing of the conversation is in memory.

python -m benchmarks.returning [--model standin] [--cache sqlite|redis] [--sessions 5] [--side samovar|llama-server]:
holds conversations of 1 000 tokens on one engine, one after the other; then each continues with 20 new tokens, and
again after all processes were killed and restarted. For comparison, prompts of the same length with nothing cached.
"""

from __future__ import annotations

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
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import TEMPLATE, Subject, subject
from benchmarks.servers import Server, cache_settings, llama_server, samovar

HISTORY, NEW, ANSWER = 1000, 20, 8
UNCACHED: Final = 5
SETTLE_SECONDS: Final = 2.0
"""Time for background writes before the simulated power cut."""
GOAL: Final = 0.08
"""Upper bound for the first token of a returning conversation, relative to an uncached prompt of the same length."""
FETCH: Final = {"sqlite": 40.0, "redis": 25.0}
"""Upper bounds for fetching and restoring, in milliseconds."""
RIVAL_CONTEXT: Final = 4096


@dataclass
class Conversation:
    """A conversation that can continue at another server."""

    number: int
    place: Any = None
    seen: int = 0
    """Tokens that the model has processed: all but the last generated one."""


@dataclass
class Visits:
    """Turns of returning conversations."""

    seen: int = 0
    cached: int = 0
    firsts: list[float] = field(default_factory=list)


class Conversations:
    """The conversations that one side holds."""

    def __init__(self, subject: Subject, count: int) -> None:
        """Prepare `count` conversations."""
        self._subject = subject
        self._all = [Conversation(number) for number in range(count)]
        self._uncached = 0

    async def warm_up(self, side: Side) -> None:
        """Load the engine."""
        await self._ask_uncached(side, NEW)

    async def start(self, side: Side) -> None:
        """Hold the first turn of every conversation, one after the other. Raises TurnFailedError."""
        for conversation in self._all:
            await self._ask(side, conversation, HISTORY)

    async def resume(self, side: Side) -> tuple[Visits, Visits]:
        """Return the next turn of every conversation, and an immediate further one. Raises TurnFailedError."""
        returns, again = Visits(), Visits()
        for conversation in self._all:
            for visits in (returns, again):
                visits.seen += conversation.seen
                turn = await self._ask(side, conversation, NEW)
                visits.cached += turn.cached
                visits.firsts.append(turn.first)
        return returns, again

    async def uncached(self, side: Side) -> list[float]:
        """Return the time to first token of uncached prompts as long as a return. Raises TurnFailedError."""
        return [(await self._ask_uncached(side, HISTORY + ANSWER + NEW)).first for _ in range(UNCACHED)]

    async def _ask_uncached(self, side: Side, tokens: int) -> Turn:
        self._uncached += 1
        return await self._ask(side, Conversation(-self._uncached), tokens)

    async def _ask(self, side: Side, conversation: Conversation, tokens: int) -> Turn:
        text = self._subject.text(tokens - TEMPLATE, random.Random(f"{conversation.number} {conversation.seen}"))
        async with side.open("", self._subject.bias, place=conversation.place) as session:
            turn = await session.ask(text, ANSWER)
            conversation.place, conversation.seen = session.place, turn.prompt + turn.output - 1
        return turn


Start = Callable[[], AbstractContextManager[Server]]


def measure(
    name: str, conversations: Conversations, start: Start, side: Callable[[Server], Side], fetch: float | None
) -> list[Figure]:
    """Return all figures of one side, across one simulated power cut. Raises LaunchError, TurnFailedError."""
    with start() as server:
        before = uvloop.run(_before(conversations, side(server)))
        server.kill()
    with start() as server:
        uncached, (returns, again) = uvloop.run(_after(conversations, side(server)))
    computed = statistics.median(uncached)
    restore = [1000 * (first - statistics.median(again.firsts)) for first in returns.firsts]

    def figure(what: str, values: list[float], unit: str, goal: float | None = None, *, high: bool = False) -> Figure:
        label = f"{name}, {len(returns.firsts)} conversations of 1 000 + 20: {what}"
        judged = goal if fetch is not None else None
        return Figure(benchmark="returning", name=label, values=values, unit=unit, goal=judged, high=high)

    def relative(visits: Visits) -> list[float]:
        return [first / computed for first in visits.firsts]

    cut = "after a power cut"
    return [
        figure("first token, nothing cached", uncached, "s"),
        figure("first token on return", before.firsts, "s"),
        figure("return over nothing cached", relative(before), "x", 1.5 * GOAL),
        figure(f"first token on return {cut}", returns.firsts, "s"),
        figure(f"return over nothing cached, {cut}", relative(returns), "x", GOAL),
        figure("fetch and restore: return minus an immediate turn", restore, "ms", fetch),
        figure("share of history from the cache", [before.cached / before.seen], "", 1.0, high=True),
        figure(f"share of history from the cache {cut}", [returns.cached / returns.seen], "", 1.0, high=True),
    ]


async def _before(conversations: Conversations, side: Side) -> Visits:
    await conversations.warm_up(side)
    await conversations.start(side)
    returns, _ = await conversations.resume(side)
    await asyncio.sleep(SETTLE_SECONDS)
    return returns


async def _after(conversations: Conversations, side: Side) -> tuple[list[float], tuple[Visits, Visits]]:
    await conversations.warm_up(side)
    return await conversations.uncached(side), await conversations.resume(side)


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="standin")
    parser.add_argument("--cache", choices=FETCH, default="sqlite")
    parser.add_argument("--sessions", type=int, default=5)
    parser.add_argument("--side", choices=("samovar", "llama-server"), default="samovar")
    options = start_benchmark(parser)
    model = subject(options.model)
    conversations = Conversations(model, options.sessions)
    if options.side == "llama-server":
        start: Start = partial(llama_server, model.path, streams=1, context=RIVAL_CONTEXT)
        rival = partial(ChatCompletions, cache_prompt=True)
        publish(measure(f"{model.name}, llama-server", conversations, start, rival, None))
        return
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="samovar-bench-")))
        settings = stack.enter_context(cache_settings(options.cache))
        start = partial(samovar, model.path, state=state, engines=1, **settings)
        publish(measure(f"{model.name}, {options.cache}", conversations, start, Samovar, FETCH[options.cache]))


if __name__ == "__main__":
    main()
