"""Who owns which KV cells: the sequences that live in one engine's context, running or remembered.

A sequence that ended stays as a resident until its cells or its number are needed. A new request takes the longest
prefix that a resident of its own scope holds: an idle resident that it wholly continues is taken over, of any other the
prefix's cells are shared. Idea: nano-vllm's block manager, with llama.cpp's cells in place of blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Cells(Protocol):
    """What residency needs of a context."""

    def share(self, source: int, target: int, length: int) -> None:
        """Let `target` own the first `length` cells of `source` too."""

    def cut(self, sequence: int, length: int) -> object:
        """Keep the first `length` tokens of `sequence`."""


@dataclass
class CachedSequence:
    """One sequence number of the context and the tokens whose KV it holds."""

    sequence: int
    scope: str = ""
    tokens: list[int] = field(default_factory=list)
    public: int = 0
    """So many of its first tokens are for all scopes."""
    reserved: int = 0
    """Cells that the running request may come to need; 0 when idle."""
    request: int = -1
    """The request that runs on it, or was the last to."""
    used: float = 0.0
    """When it was last let go, by the clock: the smallest goes first."""
    stored: bool = False
    """Whether its cells can be fetched again."""

    @property
    def idle(self) -> bool:
        """Whether no request runs on it."""
        return self.reserved == 0

    def note_stored(self, tokens: list[int], stored: bool) -> None:
        """Note whether what it held when its request ended can be fetched again, if it still holds just that."""
        if self.tokens == tokens:
            self.stored = stored

    @property
    def cells(self) -> int:
        """Cells it may hold at most; shared ones are counted for each owner, so the sum errs on the safe side."""
        return max(self.reserved, len(self.tokens))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


class KVCacheManager:
    """All sequences of one context within `cells` cells and `sequences` numbers."""

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
        """Start empty; `on_loss` is called before cells of an idle resident are given up.

        A context that is not `divisible` holds recurrent states: a prompt continues all tokens of a resident, or none.
        """
        self._context = context
        self._clock = clock
        self._on_loss = on_loss
        self._cells = cells
        self.divisible = divisible
        self._all = [CachedSequence(sequence) for sequence in range(sequences)]

    @property
    def used(self) -> int:
        """Cells in use; a shared one is counted for each owner."""
        return min(self._cells, sum(len(resident.tokens) for resident in self._all))

    def acquire(
        self, request: int, tokens: list[int], scope: str, reserve: int, *, public: int = 0
    ) -> CachedSequence | None:
        """A place for a request of `reserve` cells in all, or None until others end.

        Its `tokens` are then the prefix that need not be computed: less than all of the prompt, as the last token is
        always computed for its logits.
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
        self._make_room()
        return resident

    def follow(self, resident: CachedSequence, source: CachedSequence, length: int) -> None:
        """Let a running one hold the first `length` tokens of another, which holds so many, in place of what it has."""
        self._context.cut(resident.sequence, 0)
        self._context.share(source.sequence, resident.sequence, length)
        resident.tokens = source.tokens[:length]

    def release(self, resident: CachedSequence) -> None:
        """The request ended; its cells stay as long as there is room."""
        resident.reserved, resident.used, resident.stored = 0, self._clock(), False

    def trim(self, cells: int, seconds: float) -> None:
        """Give up residents that have been idle for so long, oldest first, until all hold no more than `cells`."""
        idle = self._idle()
        over = sum(r.cells for r in idle) - cells
        latest = self._clock() - seconds
        self._forget_oldest([resident for resident in idle if resident.used <= latest], over)

    def expire(self, seconds: float) -> None:
        """Give up residents that have been idle for so long and can be fetched again."""
        latest = self._clock() - seconds
        for resident in self._all:
            if resident.idle and resident.tokens and resident.stored and resident.used < latest:
                self._forget(resident)

    def forget(self, requests: Collection[int]) -> None:
        """Give up what these ended requests left behind; what another has continued since is that one's."""
        for resident in self._all:
            if resident.idle and resident.request in requests:
                self._forget(resident)

    def discard(self, tokens: Sequence[int], scope: str, start: int) -> None:
        """Cut idle residents that hold more of `tokens` than the first `start`, but for what is for all scopes."""
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
        # The source goes last, so that a branch does not cost the trunk it grew from.
        resident = min(idle, key=lambda r: (bool(r.tokens), r is source, r.used))
        if resident is not source:
            self._forget(resident)
        return resident

    def _make_room(self) -> None:
        """Give up idle residents, oldest first, until all that run can grow to what they reserved."""
        self._forget_oldest(self._idle(), sum(r.cells for r in self._all) - self._cells)

    def _idle(self) -> list[CachedSequence]:
        """Those that remember something and run nothing, oldest first."""
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
