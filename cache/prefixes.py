"""The prefix cache: fetches the stored KV of a prompt's prefix, and stores the KV that a turn adds.

A failing store counts as an empty store: no method raises StoreError, and a request whose KV is not found is computed.
"""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cache.blocks import Block, Chain, root
from cache.circuit_breaker import CircuitBreaker
from cache.errors import StoreError
from cache.keys import KeyRing
from cache.sealing import Sealer


class Stored(NamedTuple):
    """A block and its KV as serialized by the engine."""

    block: Block
    state: bytes


class PrefixCache:
    """Blocks of one model's KV. Call it from a helper thread: a call may take as long as the store's deadline.

    After a key rotation only the newest key is used: recomputing blocks is better than trusting a leaked key.
    """

    def __init__(self, store: CircuitBreaker, keys: KeyRing, what: Mapping[str, str | int | bool]) -> None:
        """`what` is all that KV depends on: model digest, package version, KV types, flash attention, RoPE, …"""
        self._store = store
        self._id_key = keys.derive("block ids")[0]
        self._sealer = Sealer(keys.derive("blocks")[:1])
        self._root = root(what)

    @property
    def up(self) -> bool:
        """Whether the store accepts reads and writes."""
        return self._store.up

    @property
    def writable(self) -> bool:
        """Whether the store accepts writes now, so that serializing blocks is worthwhile."""
        return self._store.writable

    def chain(self, tokens: Sequence[int], scope: str, *, public: int = 0) -> Chain:
        """Return the blocks of `tokens`, whose first `public` are the operator's and shared by all scopes."""
        chain = Chain(self._id_key, self._root, scope, public=public)
        chain.extend(tokens)
        return chain

    def fetch(self, chain: Chain, *, start: int = 0) -> list[Stored]:
        """Return the stored blocks that extend the first `start` tokens, in order and without a gap.

        The first block contains token `start`, so it may begin before it. The blocks end beyond `start`, or the list is
        empty.
        """
        depth = bisect.bisect_right(chain.full, start, key=lambda block: block.end)
        try:
            blocks = self._find_stored(chain, depth, start)
            if not blocks:
                return []
            values = self._store.get_many([block.id for block in blocks])
        except StoreError:
            return []
        found = []
        for block, value in zip(blocks, values, strict=True):
            state = None if value is None else self._open(block, value)
            if state is None:
                break
            found.append(Stored(block, state))
        return found if found and found[-1].block.end > start else []

    def store(self, chain: Chain, states: Sequence[Stored]) -> bool:
        """Store blocks of `chain` and renew the whole chain. Return False if the store fails."""
        pairs = [(block.id, self._sealer.seal(state, block.id)) for block, state in states]
        try:
            self._store.put_many(pairs, [block.id for block in reversed(chain.blocks)])
        except StoreError:
            return False
        return True

    @staticmethod
    def deletable(chain: Chain, *, start: int = 0) -> list[bytes]:
        """Return the ids of the tenant's own blocks that end beyond the first `start` tokens, without public blocks.

        They include the partial blocks of all positions where an earlier turn may have ended.
        """
        depths = range(len(chain.full) + 1)
        blocks = [block for depth in depths for block in (*chain.full[depth : depth + 1], *chain.tails(depth))]
        return [block.id for block in blocks if not block.shared and block.end > start]

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _find_stored(self, chain: Chain, depth: int, start: int) -> list[Block]:
        """Return the longest stored run of blocks after `depth` full ones that ends beyond `start`. Raises StoreError.

        The position where a turn ended is unknown. It is usually in the last block, so the first query includes the
        tails of that block.
        """
        full, tails = chain.full[depth:], _beyond(start, chain.tails(len(chain.full)))
        present = self._store.has_many([block.id for block in (*full, *tails)])
        run = present.index(False) if False in present[: len(full)] else len(full)
        if run < len(full):
            tails = _beyond(start, chain.tails(depth + run))
            present = self._store.has_many([block.id for block in tails])
        else:
            present = present[len(full) :]
        return [*full[:run], *[tail for tail, has in zip(tails, present, strict=True) if has][:1]]

    def _open(self, block: Block, value: bytes) -> bytes | None:
        started = time.monotonic()
        state = self._sealer.open(value, block.id)
        if state is None:
            self._store.count("open", "corrupt", time.monotonic() - started, len(value))
            with contextlib.suppress(StoreError):
                self._store.delete([block.id])
        return state


def _beyond(start: int, blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if block.end > start]
