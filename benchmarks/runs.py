"""One run: concurrent conversations with one side, and the figures of the run."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence

import msgspec

from benchmarks.clients import Side, Turn, converse
from benchmarks.loads import Conversation, Load, Subject, conversations
from gateway.config.other_load import BUSY, OtherLoad


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one run, in seconds and tokens."""

    seconds: float
    """From the first request to the last token."""
    output: int
    prompt: int
    cached: int
    first: list[float]
    """Median time to the first token, by turn."""
    gap: float
    """Median gap between two deltas of an answer."""
    gap_p99: float
    client: float
    """Share of one core that the client used."""
    others: float
    """Cores that other processes kept busy."""
    exact: bool
    """Whether every answer had the requested number of tokens."""

    @property
    def speed(self) -> float:
        """Output tokens per second over all conversations."""
        return self.output / self.seconds

    @property
    def disturbed(self) -> bool:
        """Whether other processes used so much processor time that the figures are unreliable."""
        return self.others > BUSY


async def run(side: Side, load: Load, subject: Subject, *, streams: int, seed: int) -> Run:
    """Hold `streams` concurrent conversations. Raises TurnFailedError."""
    texts = conversations(load, subject, streams, seed)
    return await hold(side, texts, load, subject.bias)


async def warm_up(side: Side, load: Load, subject: Subject, *, streams: int) -> None:
    """Load engines, and fill the page cache and the system prompt's cells, with one short turn per conversation."""
    texts = [Conversation(text.system, text.turns[:1]) for text in conversations(load, subject, streams, seed=0)]
    await hold(side, texts, dataclasses.replace(load, answer=4), subject.bias)


async def hold(side: Side, texts: Sequence[Conversation], load: Load, bias: dict[str, float]) -> Run:
    """Hold these conversations concurrently. Raises TurnFailedError."""
    others, processor = OtherLoad(side.server.process), time.process_time()
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
        others=others.cores(),
        exact=all(turn.output == load.answer for turn in turns),
    )


def gaps_of(turns: Sequence[Turn]) -> list[float]:
    """Return the seconds between consecutive deltas of the same answer."""
    return [later - earlier for turn in turns for earlier, later in itertools.pairwise(turn.deltas)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile of `values` at `share`, which is between 0 and 1."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
