"""Transfers KV between an engine's cells and the prefix cache: fetches blocks for new requests and stores new blocks.

Access to the store may block, so threads do it. Only the step loop accesses the cells. The two exchange bytes: a thread
fetches a block and the loop loads it into cells; the loop serializes a block, one between two steps, and a thread
stores it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

from cache import Block, Chain, PrefixCache, Stored
from engine.kv.manager import CachedSequence

MAX_KNOWN_BLOCKS: Final = 16_384
"""Maximum block ids remembered as stored: 32 bytes each, enough for two million tokens."""
MAX_UNWRITTEN_BYTES: Final = 64 << 20
"""Maximum bytes that wait for a slow store. Blocks beyond this are not stored and may have to be recomputed."""


class Cells(Protocol):
    """The methods of a context that the connector needs."""

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """Return the KV of the tokens `start` to `end` of `sequence`."""

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append the tokens `start` to `end` to `sequence`, which ends at `start`.

        Returns False, and changes nothing, if they do not fit.
        """

    def cut(self, sequence: int, length: int) -> object:
        """Keep the first `length` tokens of `sequence`."""


@dataclass(eq=False)
class _Job:
    """Blocks of one cached sequence that wait for the store."""

    resident: CachedSequence
    chain: Chain
    blocks: deque[Block]
    done: Callable[[bool], None] | None
    ids: frozenset[bytes]
    """The ids of all blocks of the job, serialized or not."""
    states: list[Stored] = field(default_factory=list)
    """The blocks serialized so far."""
    complete: bool = True
    """Whether no block was skipped, because the store is slow or down or because the block was discarded."""


class KVConnector:
    """Transfers KV between one engine's cells and the prefix cache."""

    def __init__(self, cells: Cells, cache: PrefixCache, *, wake: Callable[[], None]) -> None:
        """Own `cache`. The connector's threads call `wake` so that the loop calls `run_callbacks`."""
        self._cells = cells
        self._cache = cache
        self._wake = wake
        # One thread per direction, so that the fetch of a request does not wait for background writes.
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._storing = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._jobs: deque[_Job] = deque()
        self._callbacks: deque[Callable[[], None]] = deque()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        """Ids of blocks that are in the store, the most recent last."""
        self._under_way: set[bytes] = set()
        """Ids of blocks in unfinished jobs."""
        self._discarded: frozenset[bytes] = frozenset()
        """Ids of blocks that the storing thread must skip until it has finished the jobs queued before the deletion."""
        self._unwritten = 0
        """Serialized bytes that wait for the store."""

    def chain(self, tokens: Sequence[int], scope: str, public: int) -> Chain:
        """Return the chain of blocks of `tokens`, which the caller extends as the sequence grows."""
        return self._cache.chain(tokens, scope, public=public)

    def fetch(self, chain: Chain, start: int, found: Callable[[list[Stored]], None]) -> None:
        """Fetch the stored blocks of `chain` after its first `start` tokens. The loop then calls `found` with them."""

        def fetch() -> None:
            blocks: list[Stored] = []
            try:
                blocks = self._cache.fetch(chain, start=start)
            finally:  # after any error, such as MemoryError: the waiting request must continue without the blocks
                self._callbacks.append(lambda: self._fetched(chain, start, blocks, found))
                self._wake()

        self._fetching.submit(fetch)

    def load(self, resident: CachedSequence, blocks: Sequence[Stored], tokens: Sequence[int]) -> int:
        """Load fetched blocks of `tokens` into the cells of `resident`, and return how many tokens these then hold.

        Loading stops at the first block that does not fit; the engine computes the rest.
        """
        if blocks and blocks[0].block.start <= len(resident.tokens):
            start = blocks[0].block.start  # the block may reach further than the cells, which must end at its start
            self._cells.cut(resident.sequence, start)
            del resident.tokens[start:]
            for block, state in blocks:
                if not self._cells.load(state, resident.sequence, block.start, block.end):
                    break
                resident.tokens.extend(tokens[block.start : block.end])
        return len(resident.tokens)

    def store(
        self,
        resident: CachedSequence,
        chain: Chain,
        blocks: Sequence[Block],
        *,
        done: Callable[[bool], None] | None = None,
    ) -> None:
        """Queue `blocks` of `chain`, whose tokens are all in the cells, for the store.

        The loop then calls `done`: with True if all of them are stored, else with False.
        """
        missing = [block for block in blocks if block.id not in self._known]
        new = deque(block for block in missing if block.id not in self._under_way)
        ids = frozenset(block.id for block in new)
        self._under_way |= ids
        if new or (missing and done is not None):  # an empty job waits for the jobs that store the missing blocks
            self._jobs.append(_Job(resident, chain, new, done, ids))
        elif done is not None:
            done(True)

    @property
    def has_work(self) -> bool:
        """Whether `step` has a block to serialize."""
        return bool(self._jobs)

    def step(self) -> None:
        """Serialize one block. Takes about a millisecond, so it fits between two steps of streaming requests."""
        if self._jobs:
            self._write(self._jobs[0])

    def flush(self, resident: CachedSequence) -> None:
        """Serialize all queued blocks of `resident`, whose cells are about to be evicted."""
        self._write_all([job for job in self._jobs if job.resident is resident])

    def drain(self) -> None:
        """Serialize all queued blocks, because a request waits for the last of them."""
        self._write_all(list(self._jobs))

    def discard(self, chain: Chain, start: int, done: Callable[[], None]) -> None:
        """Drop the tenant's own queued blocks of `chain` after its first `start` tokens, serialized or not.

        The loop calls `done` when none of them can reach the store any more. Blocks already stored stay there.
        """
        ids = frozenset(self._cache.deletable(chain, start=start))
        self._discarded |= ids
        for job in self._jobs:
            job.complete &= not ids & job.ids
            job.blocks = deque(block for block in job.blocks if block.id not in ids)

        def finish() -> None:
            self._discarded -= ids
            for id_ in ids:
                self._known.pop(id_, None)
            done()

        def notify() -> None:
            self._callbacks.append(finish)
            self._wake()

        self._write_all([job for job in self._jobs if ids & job.ids])  # the storing thread skips the blocks
        self._storing.submit(notify)  # runs after all jobs queued before

    def run_callbacks(self) -> None:
        """Run the callbacks that the threads queued for the loop."""
        while self._callbacks:
            self._callbacks.popleft()()

    def close(self) -> None:
        """Serialize and store all queued blocks, within the store's own deadlines."""
        self.drain()
        self._fetching.shutdown(cancel_futures=True)
        self._storing.shutdown()
        self._cache.close()

    def _fetched(self, chain: Chain, start: int, blocks: list[Stored], found: Callable[[list[Stored]], None]) -> None:
        reached = blocks[-1].block.end if blocks else start
        for block in chain.blocks:  # blocks that are no longer in the store have to be stored again
            if block.end > reached:
                self._known.pop(block.id, None)
        self._remember([stored.block for stored in blocks])
        found(blocks)

    def _write_all(self, jobs: list[_Job]) -> None:
        """Serialize all blocks of these jobs, and queue them for the storing thread."""
        for job in jobs:
            while job in self._jobs:
                self._write(job)

    def _write(self, job: _Job) -> None:
        if job.blocks and self._unwritten < MAX_UNWRITTEN_BYTES and self._cache.writable:
            block = job.blocks.popleft()
            state = self._cells.save(job.resident.sequence, block.start, block.end)
            self._unwritten += len(state)
            job.states.append(Stored(block, state))
        elif job.blocks:
            job.complete = False
            job.blocks.clear()
        if not job.blocks:
            self._jobs.remove(job)
            self._storing.submit(self._store_job, job)

    def _store_job(self, job: _Job) -> None:
        size = sum(len(stored.state) for stored in job.states)
        states = [stored for stored in job.states if stored.block.id not in self._discarded]
        success = False

        def finish() -> None:
            self._unwritten -= size
            self._under_way -= job.ids
            if success:
                self._remember([stored.block for stored in states])
            if job.done is not None:
                job.done(success and job.complete and len(states) == len(job.states))

        try:
            success = self._cache.store(job.chain, states)
        finally:
            self._callbacks.append(finish)
            self._wake()

    def _remember(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self._known[block.id] = None
            self._known.move_to_end(block.id)
        while len(self._known) > MAX_KNOWN_BLOCKS:
            self._known.popitem(last=False)
