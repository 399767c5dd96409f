"""KV blocks: which tokens of a sequence are stored under which name.

A block holds the KV of up to BLOCK tokens and is named by all that came before it, as in vLLM's prefix cache and
LMCache: `id = HMAC-SHA256(id key, parent id ‖ scope ‖ token ids)`. Keyed, because who reads the store could otherwise
confirm a guessed prompt; with the tenant as scope, because a shared block would tell by its speed what another said.
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
"""Tokens of a full block: the tail, which may have fewer, is what a returning session would otherwise compute again."""
PUBLIC: Final = bytes(32)
"""Scope of what all tenants share: the operator's instructions. No tenant's digest is this."""
_TOKEN_BYTES: Final = 4


class Block(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a sequence, and the id of their KV."""

    id: bytes
    start: int
    end: int
    shared: bool
    """Whether its scope is public."""


def root(what: Mapping[str, str | int | bool]) -> bytes:
    """The parent of all first blocks: a digest of everything that the state's format and values depend on."""
    return hashlib.sha256(json.dumps(dict(what), sort_keys=True).encode()).digest()


class Chain:
    """The blocks of one sequence, growing with it.

    The first `public` tokens are the operator's and end a block, however short: what all tenants share is stored once,
    whole, and is nobody's own from the next token on.
    """

    def __init__(self, key: bytes, root: bytes, scope: str, *, public: int = 0) -> None:
        """Begin empty; `scope` is the tenant's."""
        self._key = key
        self._root = root
        self._scope = hashlib.sha256(scope.encode()).digest()
        self._public = public
        self.tokens: list[int] = []
        self.full: list[Block] = []

    def __len__(self) -> int:
        """Tokens so far."""
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> list[Block]:
        """Append token ids; gives the blocks that are full now and were not before."""
        self.tokens += tokens
        known = len(self.full)
        while len(self.tokens) >= self.due:
            room = self._room(len(self.full))
            self.full += self._prefixes(len(self.full), room, room)
        return self.full[known:]

    @property
    def due(self) -> int:
        """Tokens with which the block that is being filled is full."""
        return self._start(len(self.full)) + self._room(len(self.full))

    @property
    def tail(self) -> Block | None:
        """The unfilled block at the end, if there is one."""
        rest = len(self.tokens) - self._start(len(self.full))
        return self._prefixes(len(self.full), rest, rest)[0] if rest else None

    @property
    def blocks(self) -> list[Block]:
        """All blocks from the first token to the last, the tail included."""
        tail = self.tail
        return [*self.full, tail] if tail else list(self.full)

    def tails(self, depth: int) -> list[Block]:
        """The unfilled blocks with which a stored prefix of `depth` full ones may end, longest first.

        127 at most: where a turn ended is not known.
        """
        return self._prefixes(depth, 1, min(self._room(depth) - 1, len(self.tokens) - self._start(depth)))

    def _start(self, depth: int) -> int:
        return self.full[depth - 1].end if depth else 0

    def _room(self, depth: int) -> int:
        """Tokens that the block after `depth` full ones holds at most."""
        start = self._start(depth)
        return min(BLOCK, self._public - start) if start < self._public else BLOCK

    def _prefixes(self, depth: int, shortest: int, longest: int) -> list[Block]:
        """Blocks of `shortest` to `longest` tokens after `depth` full ones, longest first.

        Hashed token by token, so that all 127 tails cost 0.2 ms.
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
    """Token ids as 32-bit little-endian integers, the same on every machine that shares a store."""
    ids = array.array("i", tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()
