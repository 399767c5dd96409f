"""The KV of one engine: what its requests reuse, compute and store. The engine's other modules use only `KVCache`.

Invariants:
- `CachedSequence.tokens` are exactly the tokens whose KV the main context holds. Further tokens of a running sequence
  may be on its seat only (`Places`).
- A running request owns its sequence. Idle ones are shared, cut or evicted, never changed otherwise.
- KV of one scope is reused only for that scope, except for public tokens.
- What an idle sequence has not stored is serialized before it is evicted.
- A failed step, load or fetch leaves a sequence that holds fewer tokens, never wrong ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from cache import Operation, PrefixCache, Stored, StoreError
from engine.kv.connector import KVConnector
from engine.kv.manager import CachedSequence, KVCacheManager
from engine.kv.places import Computed, Places
from engine.llama import Model
from engine.messages import Discard, Generate, WorkerConfig
from engine.scheduler import Sequence, Step

MIN_FETCH: Final = 16
"""Minimum missing tokens of a prompt for a fetch from the store: computing fewer takes less time than the fetch."""
MIN_RETENTION: Final = 1.0
"""Minimum retention of an ended request's cells in seconds, so that an immediate follow-up skips the store."""
RETENTION: Final = 5.0
"""Retention of an ended and stored request's cells in seconds while others run. 1 000 idle cells slow the steps of the
others by about 2 %; fetching them again takes 20 ms, once."""


class KVCache:
    """The KV of one engine."""

    def __init__(self, model: Model, config: WorkerConfig, *, wake: Callable[[], None]) -> None:
        """Create the main context, and then open the store, whose threads call `wake`. Raises ModelLoadError."""
        self._places = Places(model, cells=config.cells, sequences=config.sequences)
        self.cells = self._places.cells
        self.divisible = model.has_blocks
        """Whether a prompt can reuse a part of a sequence; recurrent states can only be continued."""
        self._idle_cells = config.idle_cells
        self._operations: deque[Operation] = deque()
        self._cache = self._open_cache(config) if self.divisible else None
        self._connector = None if self._cache is None else KVConnector(self._places.home, self._cache, wake=wake)
        self._manager = KVCacheManager(
            self._places.home,
            cells=self.cells,
            sequences=config.sequences,
            divisible=self.divisible,
            on_loss=self._before_loss,
        )

    def _open_cache(self, config: WorkerConfig) -> PrefixCache | None:
        if config.cache is not None:
            with suppress(StoreError):  # the gateway opened the same store and reported the error
                return config.cache.open(config.build, self._operations.append)
        return None

    @property
    def used(self) -> int:
        """Cells in use. A shared cell counts for each owner."""
        return self._manager.used

    @property
    def storing(self) -> bool:
        """Whether `transfer` would serialize a block now."""
        return self._connector is not None and self._connector.has_work

    def set_threads(self, threads: int) -> None:
        """Use `threads` threads from the next step on."""
        self._places.set_threads(threads)

    def acquire(self, message: Generate) -> CachedSequence | None:
        """Return the sequence of a new request, with the longest prefix that is held, or None if there is no room."""
        limit = len(message.tokens) + message.max_tokens
        return self._manager.acquire(message.request, message.tokens, message.scope, limit, public=message.public)

    def fetch(self, message: Generate, resident: CachedSequence, found: Callable[[Callable[[], int]], None]) -> bool:
        """Fetch stored KV that extends `resident`. Returns False if that is not worthwhile.

        `transfer` then calls `found` with a function that loads the KV and returns the number of its tokens.
        """
        missing = len(message.tokens) - 1 - len(resident.tokens)
        # Generated tokens are recomputed a few per step (RECOMPUTE_ROWS), so fetching even one of them saves time.
        if self._connector is None or not message.stored or missing < (1 if message.generated else MIN_FETCH):
            return False
        connector = self._connector

        def load(blocks: list[Stored]) -> int:
            before = len(resident.tokens)
            return max(0, connector.load(resident, blocks, message.tokens) - before)

        # The last token is always computed: its logits are needed, and blocks hold no logits.
        chain = connector.chain(message.tokens[:-1], message.scope, message.public)
        connector.fetch(chain, len(resident.tokens), lambda blocks: found(partial(load, blocks)))
        return True

    def follow(self, resident: CachedSequence, source: CachedSequence, length: int) -> None:
        """Replace the tokens of a running sequence by the first `length` of `source`, which holds at least these."""
        self._manager.follow(resident, source, length)

    def begin(self, message: Generate, resident: CachedSequence) -> None:
        """Store the blocks of a request from now on: its tokens only grow, and its chain grows with them."""
        if message.stored and self._connector is not None:
            resident.chain = self._connector.chain(resident.tokens, message.scope, message.public)

    def compute(self, step: Step) -> Computed:
        """Run a step and advance its sequences. Raises DecodeError."""
        return self._places.compute(step, used=self.used)

    def store_filled(self, sequence: Sequence) -> None:
        """Queue the blocks that a running sequence has filled for the store. Raises DecodeError."""
        resident, chain = sequence.resident, sequence.resident.chain
        if chain is not None and self._connector is not None and sequence.computed >= chain.due:
            self._places.write_home(sequence)
            full = chain.extend(resident.tokens[len(chain.tokens) :])
            self._connector.store(resident, chain, full)

    def keep_draft(self, sequence: Sequence) -> None:
        """Count the draft token that follows the computed ones as computed: it was sampled."""
        self._places.keep_draft(sequence)

    def drop_draft(self, sequence: Sequence) -> None:
        """Remove the cells of draft tokens that were not sampled."""
        self._places.drop_draft(sequence)

    def release(self, sequence: Sequence, *, moved: Callable[[], None] | None = None) -> None:
        """End the request of a sequence, and store all its KV, including the unfilled last block.

        `moved` is called once it is stored: another engine waits for it.
        """
        self._places.leave(sequence)
        resident, chain = sequence.resident, sequence.resident.chain
        self._manager.release(resident)
        if chain is None or self._connector is None:
            if moved is not None:
                moved()
            return
        chain.extend(resident.tokens[len(chain.tokens) :])
        if moved is None:
            done = partial(resident.note_stored, list(resident.tokens))
            self._connector.store(resident, chain, chain.blocks, done=done)
        else:
            self._connector.store(resident, chain, chain.blocks, done=lambda _: moved())
            self._connector.drain()

    def transfer(self) -> tuple[list[Operation], bool] | None:
        """Continue requests whose blocks have been fetched, and serialize one block for the store.

        Returns the operations of the store since the last call and whether it is up, or None if there were none.
        """
        if self._connector is None or self._cache is None:
            return None
        self._connector.run_callbacks()
        self._connector.step()
        operations = [self._operations.popleft() for _ in range(len(self._operations))]
        return (operations, self._cache.up) if operations else None

    def expire(self) -> None:
        """Evict the cells of ended requests while others run, because idle cells slow every step down."""
        if self._cache is not None and self._cache.writable:  # otherwise their KV would be lost
            self._manager.trim(self._idle_cells, MIN_RETENTION)
            self._manager.expire(RETENTION)

    def forget(self, requests: list[int]) -> None:
        """Drop the cells of ended requests that no later request can continue."""
        self._manager.forget(requests)

    def discard(self, message: Discard, done: Callable[[], None]) -> None:
        """Drop the cells and queued blocks of a deleted response. `done` is called when none of it can be stored."""
        if self._connector is None:
            done()
        else:  # before its cells are cut: other blocks in them may still have to be written
            chain = self._connector.chain(message.tokens, message.scope, message.public)
            self._connector.discard(chain, message.start, done)
        self._manager.discard(message.tokens, message.scope, message.start)

    def close(self) -> None:
        """Write all queued blocks to the store."""
        if self._connector is not None:
            self._connector.close()

    def _before_loss(self, resident: CachedSequence) -> None:
        if self._connector is not None:
            self._connector.flush(resident)
