"""KV blocks: how a sequence is cut into blocks, and the id of each block.

A block holds the KV of up to BLOCK tokens. Its id covers the whole prefix that ends with it, as in vLLM's prefix cache
and LMCache: `id = HMAC-SHA256(id key, parent id ‖ scope ‖ token ids)`. The hash is keyed, because a reader of the store
could otherwise confirm a guessed prompt. The scope is the tenant, because the faster response of a shared block would
reveal what another tenant has sent.
"""

from __future__ import annotations

import array
import hashlib
import hmac
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

BLOCK: Final = 128
"""Tokens of a full block. The tail block may have fewer; without it a returning session would recompute those."""
PUBLIC: Final = bytes(32)
"""Scope of the operator's instructions, which all tenants share. It equals no tenant's digest."""
_TOKEN_BYTES: Final = 4


class Block(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a sequence, and the id of their KV."""

    id: bytes
    start: int
    end: int
    shared: bool
    """Whether its scope is public."""


def root(what: Mapping[str, str | int | bool]) -> bytes:
    """Return the parent id of all first blocks: a digest of `what`, all that a state's format and values depend on."""
    return hashlib.sha256(json.dumps(dict(what), sort_keys=True).encode()).digest()


class Chain:
    """The blocks of one growing sequence.

    The first `public` tokens come from the operator's instructions. A block ends after them, however short it is, so
    that the part shared by all tenants is stored once and the blocks after it belong to the tenant alone.
    """

    def __init__(self, key: bytes, root: bytes, scope: str, *, public: int = 0) -> None:
        """Create an empty chain; `scope` names the tenant."""
        self._key = key
        self._root = root
        self._scope = hashlib.sha256(scope.encode()).digest()
        self._public = public
        self.tokens: list[int] = []
        self.full: list[Block] = []

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> list[Block]:
        """Append token ids and return the blocks that became full."""
        self.tokens += tokens
        known = len(self.full)
        while len(self.tokens) >= self.due:
            room = self._room(len(self.full))
            self.full += self._prefixes(len(self.full), room, room)
        return self.full[known:]

    @property
    def due(self) -> int:
        """Length of the sequence, in tokens, at which the block being filled is full."""
        return self._start(len(self.full)) + self._room(len(self.full))

    @property
    def tail(self) -> Block | None:
        """The partial block at the end, or None."""
        rest = len(self.tokens) - self._start(len(self.full))
        return self._prefixes(len(self.full), rest, rest)[0] if rest else None

    @property
    def blocks(self) -> list[Block]:
        """All blocks from the first token to the last, including the tail."""
        tail = self.tail
        return [*self.full, tail] if tail else list(self.full)

    def tails(self, depth: int) -> list[Block]:
        """Return all partial blocks that may follow `depth` full ones in the store, longest first.

        There are up to 127, because the position where a turn ended is unknown.
        """
        return self._prefixes(depth, 1, min(self._room(depth) - 1, len(self.tokens) - self._start(depth)))

    def _start(self, depth: int) -> int:
        return self.full[depth - 1].end if depth else 0

    def _room(self, depth: int) -> int:
        """Return the capacity, in tokens, of the block after `depth` full ones."""
        start = self._start(depth)
        return min(BLOCK, self._public - start) if start < self._public else BLOCK

    def _prefixes(self, depth: int, shortest: int, longest: int) -> list[Block]:
        """Return the blocks of `shortest` to `longest` tokens after `depth` full ones, longest first.

        One running hash serves all of them: all 127 tails take 0.2 ms.
        """
        start, parent = self._start(depth), self.full[depth - 1].id if depth else self._root
        shared = start < self._public
        digest = hmac.new(self._key, parent + (PUBLIC if shared else self._scope), "sha256")
        data, hashed, found = _pack(self.tokens[start : start + longest]), 0, []
        for n in range(shortest, longest + 1):
            digest.update(data[hashed : n * _TOKEN_BYTES])
            hashed = n * _TOKEN_BYTES
            found.append(Block(digest.digest(), start, start + n, shared))
        return found[::-1]


def _pack(tokens: Sequence[int]) -> bytes:
    """Return token ids as 32-bit little-endian integers, the same on every machine that shares a store."""
    ids = array.array("i", tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()
