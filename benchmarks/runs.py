"""One run: so many conversations at once with one side, and what came of it."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.clients import Side, Turn, converse
from benchmarks.loads import Conversation, Load, Subject, conversations
from benchmarks.machine import Neighbours

QUIET: Final = 0.1
"""Cores that others may use: another process at 10 % of a core takes up to 12 % of a two-thread engine's speed."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one run; seconds and tokens."""

    seconds: float
    """From the first request to the last token of all."""
    output: int
    prompt: int
    cached: int
    first: list[float]
    """Median time to the first token, by turn."""
    gap: float
    """Median between two pieces of an answer."""
    gap_p99: float
    client: float
    """What the asking side used of one core."""
    others: float
    """Cores that processes beside both sides kept busy."""
    exact: bool
    """Whether every answer had as many tokens as were asked for."""

    @property
    def speed(self) -> float:
        """Output tokens a second, over all conversations."""
        return self.output / self.seconds

    @property
    def disturbed(self) -> bool:
        """Whether others computed so much meanwhile that the figures say little."""
        return self.others > QUIET


async def run(side: Side, load: Load, subject: Subject, *, streams: int, seed: int) -> Run:
    """Hold `streams` conversations at once. Raises TurnFailedError."""
    texts = conversations(load, subject, streams, seed)
    return await hold(side, texts, load, subject.bias)


async def warm_up(side: Side, load: Load, subject: Subject, *, streams: int) -> None:
    """Load engines, fill the page cache and the system prompt's cells: a first turn each, answered in a few tokens."""
    texts = [Conversation(text.system, text.turns[:1]) for text in conversations(load, subject, streams, seed=0)]
    await hold(side, texts, dataclasses.replace(load, answer=4), subject.bias)


async def hold(side: Side, texts: Sequence[Conversation], load: Load, bias: dict[str, float]) -> Run:
    """Hold these conversations at once. Raises TurnFailedError."""
    neighbours, processor = Neighbours(side.server.process), time.process_time()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(converse(side, text, load, bias)) for text in texts]
    talks = [task.result() for task in tasks]
    turns = [turn for talk in talks for turn in talk]
    seconds = max(turn.deltas[-1] for turn in turns) - min(turn.asked for turn in turns)
    gaps = gaps_of(turns)
    return Run(
        seconds=seconds,
        output=sum(turn.output for turn in turns),
        prompt=sum(turn.prompt for turn in turns),
        cached=sum(turn.cached for turn in turns),
        first=[statistics.median(talk[i].first for talk in talks) for i in range(len(texts[0].turns))],
        gap=statistics.median(gaps),
        gap_p99=percentile(gaps, 0.99),
        client=(time.process_time() - processor) / seconds,
        others=neighbours.cores(),
        exact=all(turn.output == load.answer for turn in turns),
    )


def gaps_of(turns: Sequence[Turn]) -> list[float]:
    """Seconds between neighbouring pieces of the same answer."""
    return [later - earlier for turn in turns for earlier, later in itertools.pairwise(turn.deltas)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the others do not pass."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
