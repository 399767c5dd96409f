"""A table from token ids to bytes: the part of a vocabulary that the gateway needs, in 10 bytes per token."""

from __future__ import annotations

import msgspec


class TokenTable(msgspec.Struct, frozen=True, kw_only=True):
    """The pieces of all tokens, concatenated."""

    digest: str
    """SHA-256 of all tokens' texts and types. Under the same digest, token ids have the same meaning."""
    pieces: bytes
    ends: bytes
    """End offset of each piece in `pieces`, as native unsigned 32-bit integers."""
    silent: dict[int, str]
    """Names of the tokens without bytes, such as `<|im_end|>`."""

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.ends) // 4

    def piece(self, token: int) -> bytes:
        """Return the bytes of `token`, possibly an incomplete character; empty for a control token."""
        ends = memoryview(self.ends).cast("I")
        return self.pieces[ends[token - 1] if token else 0 : ends[token]]

    def shown(self, token: int) -> bytes:
        """Return the bytes of `token`, or its name if it has none."""
        return self.piece(token) or self.silent.get(token, "").encode()
