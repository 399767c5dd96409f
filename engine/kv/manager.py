"""Assigns KV cells: the sequences that one engine's main context holds, running or cached.

A sequence stays cached after its request ended, until its cells or its sequence number are needed. A new request reuses
the longest prefix that a cached sequence of the same scope holds. If it continues all tokens of an idle sequence, it
takes that sequence over; otherwise it shares the cells of the prefix. Names with `resident` mean a CachedSequence.
Idea: nano-vllm's block manager, with llama.cpp's cells instead of blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cache import Chain


class Cells(Protocol):
    """The methods of a context that the manager needs."""

    def share(self, source: int, target: int, length: int) -> None:
        """Make `target` a further owner of the first `length` cells of `source`."""

    def cut(self, sequence: int, length: int) -> object:
        """Keep the first `length` tokens of `sequence`."""


@dataclass
class CachedSequence:
    """One sequence number of the context and the tokens whose KV it holds."""

    sequence: int
    scope: str = ""
    tokens: list[int] = field(default_factory=list)
    public: int = 0
    """Number of leading tokens that all scopes may reuse."""
    reserved: int = 0
    """Cells that the running request may need in total; 0 when idle."""
    request: int = -1
    """The request that runs on it, or the last one that did."""
    used: float = 0.0
    """When its last request ended, in seconds of the clock. The smallest is evicted first."""
    stored: bool = False
    """Whether the store holds all its KV, so that it can be fetched again."""
    chain: Chain | None = None
    """The blocks of its tokens while a request runs; None if they must not be stored."""

    @property
    def idle(self) -> bool:
        """Whether no request runs on it."""
        return self.reserved == 0

    def note_stored(self, tokens: list[int], stored: bool) -> None:
        """Set `stored` if the sequence still holds exactly `tokens`, its tokens when its request ended."""
        if self.tokens == tokens:
            self.stored = stored

    @property
    def cells(self) -> int:
        """Maximum cells it may hold. Shared cells count for each owner, so a sum of these is an upper bound."""
        return max(self.reserved, len(self.tokens))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common prefix of `a` and `b`."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


class KVCacheManager:
    """Manages the sequences of one context, within `cells` cells and `sequences` sequence numbers."""

    def __init__(
        self,
        context: Cells,
        *,
        cells: int,
        sequences: int,
        divisible: bool = True,
        on_loss: Callable[[CachedSequence], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty. `on_loss` is called before cells of an idle sequence are evicted.

        A context that is not `divisible` holds recurrent states: a prompt reuses all tokens of a sequence, or none.
        """
        self._context = context
        self._clock = clock
        self._on_loss = on_loss
        self._cells = cells
        self.divisible = divisible
        self._all = [CachedSequence(sequence) for sequence in range(sequences)]

    @property
    def used(self) -> int:
        """Cells in use. A shared cell counts for each owner."""
        return min(self._cells, sum(len(resident.tokens) for resident in self._all))

    def acquire(
        self, request: int, tokens: list[int], scope: str, reserve: int, *, public: int = 0
    ) -> CachedSequence | None:
        """Return a sequence for a request that may need `reserve` cells in total, or None if too few are free.

        The sequence's `tokens` are the prefix that need not be computed. It is shorter than the prompt, because the
        last token is always computed for its logits.
        """
        running = [r for r in self._all if not r.idle]
        if len(running) == len(self._all) or sum(r.cells for r in running) + reserve > self._cells:
            return None
        source, length = self._longest(tokens, scope, public)
        if source is not None and source.idle and length >= len(source.tokens) - 1:
            resident = source
        else:
            resident = self._free_number(source)
            if source is not None and source is not resident:
                self._context.share(source.sequence, resident.sequence, length)
        if length < len(resident.tokens):
            self._on_loss(resident)
        self._context.cut(resident.sequence, length)
        resident.tokens = tokens[:length]
        resident.request, resident.scope, resident.reserved, resident.public = request, scope, reserve, public
        resident.chain = None
        self._make_room()
        return resident

    def follow(self, resident: CachedSequence, source: CachedSequence, length: int) -> None:
        """Replace the tokens of a running sequence by the first `length` of `source`, which holds at least these."""
        self._context.cut(resident.sequence, 0)
        self._context.share(source.sequence, resident.sequence, length)
        resident.tokens = source.tokens[:length]

    def release(self, resident: CachedSequence) -> None:
        """Mark a sequence as idle. Its cells stay cached until they are needed."""
        resident.reserved, resident.used, resident.stored = 0, self._clock(), False

    def trim(self, cells: int, seconds: float) -> None:
        """Evict sequences that were idle for `seconds`, oldest first, until idle ones hold at most `cells`."""
        idle = self._idle()
        over = sum(r.cells for r in idle) - cells
        latest = self._clock() - seconds
        self._forget_oldest([resident for resident in idle if resident.used <= latest], over)

    def expire(self, seconds: float) -> None:
        """Evict sequences that were idle for `seconds` and are stored."""
        latest = self._clock() - seconds
        for resident in self._all:
            if resident.idle and resident.tokens and resident.stored and resident.used < latest:
                self._forget(resident)

    def forget(self, requests: Collection[int]) -> None:
        """Evict the idle sequences of these ended requests, except those that a later request has continued."""
        for resident in self._all:
            if resident.idle and resident.request in requests:
                self._forget(resident)

    def discard(self, tokens: Sequence[int], scope: str, start: int) -> None:
        """Cut idle sequences of `scope` that hold more of `tokens` than the first `start`. Public tokens stay."""
        for resident in self._all:
            kept = max(start, resident.public)
            if resident.idle and resident.scope == scope and common_prefix(resident.tokens, tokens) > kept:
                self._on_loss(resident)
                self._context.cut(resident.sequence, kept)
                del resident.tokens[kept:]

    def _longest(self, tokens: list[int], scope: str, public: int) -> tuple[CachedSequence | None, int]:
        best, length = None, 0
        for resident in self._all:
            common = len(tokens) - 1 if resident.scope == scope else min(resident.public, public, len(tokens) - 1)
            if common > length and resident.tokens:
                n = min(common_prefix(resident.tokens, tokens), common)
                if n > length and (self.divisible or n == len(resident.tokens)):
                    best, length = resident, n
        return best, length

    def _free_number(self, source: CachedSequence | None) -> CachedSequence:
        idle = [r for r in self._all if r.idle]
        # The source is evicted last, so that a branch does not evict the conversation that it branched from.
        resident = min(idle, key=lambda r: (bool(r.tokens), r is source, r.used))
        if resident is not source:
            self._forget(resident)
        return resident

    def _make_room(self) -> None:
        """Evict idle sequences, oldest first, until all running ones can grow to their reserved size."""
        self._forget_oldest(self._idle(), sum(r.cells for r in self._all) - self._cells)

    def _idle(self) -> list[CachedSequence]:
        """Return the idle sequences that hold tokens, oldest first."""
        return sorted((r for r in self._all if r.idle and r.tokens), key=lambda r: r.used)

    def _forget_oldest(self, idle: Sequence[CachedSequence], over: int) -> None:
        for resident in idle:
            if over <= 0:
                return
            over -= resident.cells
            self._forget(resident)

    def _forget(self, resident: CachedSequence) -> None:
        if resident.tokens:
            self._on_loss(resident)
        self._context.cut(resident.sequence, 0)
        resident.tokens = []
