"""Carries KV between an engine's cells and the prefix cache: fetches what is waited for, keeps what is new.

The store is another process's or the disk's, so threads speak to it; the cells are the step loop's alone. Between them
go bytes: a fetch is done by a thread and put into cells by the loop; a block is written out by the loop, one between
two steps, and stored by a thread.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

from cache import Block, Chain, PrefixCache, Stored
from engine.kv_cache_manager import CachedSequence

KNOWN: Final = 16_384
"""Ids of blocks that are remembered to be stored: 32 bytes each, for two million tokens."""
UNWRITTEN: Final = 64 << 20
"""Bytes that may wait for a slow store; what comes beyond is not stored, and computed again when it is wanted."""


class Cells(Protocol):
    """What is needed of a context."""

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """The KV of tokens `start` to `end` of `sequence`."""

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append them to `sequence`, which ends at `start`; False, and nothing done, if they do not fit."""

    def cut(self, sequence: int, length: int) -> object:
        """Keep the first `length` tokens of `sequence`."""


@dataclass(eq=False)
class _Job:
    """Blocks of one resident on their way to the store."""

    resident: CachedSequence
    chain: Chain
    blocks: deque[Block]
    done: Callable[[bool], None] | None
    ids: frozenset[bytes]
    """Of all of them, written out or not."""
    states: list[Stored] = field(default_factory=list)
    whole: bool = True
    """Whether none was left out because the store is slow or away."""


class KVConnector:
    """One engine's way to the prefix cache. `wake` is called, by any thread, when there is something for `settle`."""

    def __init__(self, cells: Cells, cache: PrefixCache, *, wake: Callable[[], None]) -> None:
        """Own `cache`."""
        self._cells = cells
        self._cache = cache
        self._wake = wake
        # A thread for each direction: a request's fetch must not wait for what is stored in the background.
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._storing = ThreadPoolExecutor(1, thread_name_prefix="keep")
        self._jobs: deque[_Job] = deque()
        self._settled: deque[Callable[[], None]] = deque()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._under_way: set[bytes] = set()
        self._discarded: frozenset[bytes] = frozenset()
        """Ids of blocks that the storing thread must not store, until it is done with what was queued before."""
        self._unwritten = 0

    def chain(self, tokens: Sequence[int], scope: str, public: int) -> Chain:
        """The blocks of a sequence, to be extended as it grows."""
        return self._cache.chain(tokens, scope, public=public)

    def fetch(self, chain: Chain, start: int, found: Callable[[list[Stored]], None]) -> None:
        """Look for what the store has of `chain` beyond its first `start` tokens; the loop then calls `found`."""

        def work() -> None:
            blocks: list[Stored] = []
            try:
                blocks = self._cache.fetch(chain, start=start)
            finally:  # memory may be short, too: a request that waits must go on without, or nobody ever ends it
                self._settled.append(lambda: self._fetched(chain, start, blocks, found))
                self._wake()

        self._fetching.submit(work)

    def load(self, resident: CachedSequence, blocks: Sequence[Stored], tokens: Sequence[int]) -> int:
        """Put fetched blocks of `tokens` into the cells of `resident`; gives how many tokens these hold then.

        Where a block does not fit, it ends: the rest is computed.
        """
        if blocks and blocks[0].block.start <= len(resident.tokens):
            start = blocks[0].block.start  # it may hold more than the cells did from there on
            self._cells.cut(resident.sequence, start)
            del resident.tokens[start:]
            for block, state in blocks:
                if not self._cells.load(state, resident.sequence, block.start, block.end):
                    break
                resident.tokens.extend(tokens[block.start : block.end])
        return len(resident.tokens)

    def keep(
        self,
        resident: CachedSequence,
        chain: Chain,
        blocks: Sequence[Block],
        *,
        done: Callable[[bool], None] | None = None,
    ) -> None:
        """Have `blocks` of `chain`, whose tokens are all in the cells, stored.

        The loop calls `done` afterwards, with whether all that was left to store is in the store.
        """
        missing = [block for block in blocks if block.id not in self._known]
        new = deque(block for block in missing if block.id not in self._under_way)
        ids = frozenset(block.id for block in new)
        self._under_way |= ids
        if new or (missing and done is not None):  # a job with nothing to do is done after those before it
            self._jobs.append(_Job(resident, chain, new, done, ids))
        elif done is not None:
            done(True)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._jobs)

    def step(self) -> None:
        """Write out one block: a millisecond, between two steps of those who stream."""
        if self._jobs:
            self._write(self._jobs[0])

    def flush(self, resident: CachedSequence) -> None:
        """Write out all that is left of `resident`, whose cells are about to go."""
        for job in [job for job in self._jobs if job.resident is resident]:
            while job in self._jobs:
                self._write(job)

    def drain(self) -> None:
        """Write out all that is left, as somebody waits for what comes last."""
        while self._jobs:
            self._write(self._jobs[0])

    def discard(self, chain: Chain, start: int, done: Callable[[], None]) -> None:
        """Drop the tenant's own blocks of `chain` beyond its first `start` tokens, wherever they are on their way.

        The loop calls `done` when the store has none of them to come. Blocks that are stored stay there.
        """
        ids = frozenset(self._cache.deletable(chain, start=start))
        self._discarded |= ids
        for job in self._jobs:
            job.whole &= not ids & job.ids
            job.blocks = deque(block for block in job.blocks if block.id not in ids)

        def settled() -> None:
            self._discarded -= ids
            for id_ in ids:
                self._known.pop(id_, None)
            done()

        def passed() -> None:
            self._settled.append(settled)
            self._wake()

        self._drain_jobs_with(ids)
        self._storing.submit(passed)  # behind all that was queued before

    def settle(self) -> None:
        """Do what the threads left for the loop."""
        while self._settled:
            self._settled.popleft()()

    def close(self) -> None:
        """Write out and store all that is left, within the store's own deadlines."""
        self.drain()
        self._fetching.shutdown(cancel_futures=True)
        self._storing.shutdown()
        self._cache.close()

    def _fetched(self, chain: Chain, start: int, blocks: list[Stored], found: Callable[[list[Stored]], None]) -> None:
        reached = blocks[-1].block.end if blocks else start
        for block in chain.blocks:  # what was looked for and has gone from the store has to be stored again
            if block.end > reached:
                self._known.pop(block.id, None)
        self._remember([stored.block for stored in blocks])
        found(blocks)

    def _drain_jobs_with(self, ids: frozenset[bytes]) -> None:
        """Hand over jobs that have written some of these blocks: the storing thread leaves them out."""
        for job in [job for job in self._jobs if ids & job.ids]:
            while job in self._jobs:
                self._write(job)

    def _write(self, job: _Job) -> None:
        if job.blocks and self._unwritten < UNWRITTEN and self._cache.writable:
            block = job.blocks.popleft()
            state = self._cells.save(job.resident.sequence, block.start, block.end)
            self._unwritten += len(state)
            job.states.append(Stored(block, state))
        elif job.blocks:
            job.whole = False
            job.blocks.clear()
        if not job.blocks:
            self._jobs.remove(job)
            self._storing.submit(self._store, job)

    def _store(self, job: _Job) -> None:
        size = sum(len(stored.state) for stored in job.states)
        states = [stored for stored in job.states if stored.block.id not in self._discarded]
        kept = False

        def settled() -> None:
            self._unwritten -= size
            self._under_way -= job.ids
            if kept:
                self._remember([stored.block for stored in states])
            if job.done is not None:
                job.done(kept and job.whole and len(states) == len(job.states))

        try:
            kept = self._cache.store(job.chain, states)
        finally:
            self._settled.append(settled)
            self._wake()

    def _remember(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self._known[block.id] = None
            self._known.move_to_end(block.id)
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
