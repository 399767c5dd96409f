"""Token ids to bytes: all of a vocabulary that the gateway needs, in 10 bytes a token."""

from __future__ import annotations

import msgspec


class TokenTable(msgspec.Struct, frozen=True, kw_only=True):
    """The pieces of all tokens, one after the other."""

    digest: str
    """SHA-256 of all tokens' texts and kinds: token ids mean the same under the same digest."""
    pieces: bytes
    ends: bytes
    """Where each piece ends in `pieces`, as native unsigned 32-bit integers."""
    silent: dict[int, str]
    """Tokens that stand for no bytes, as the vocabulary writes them: `<|im_end|>` for instance."""

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.ends) // 4

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` stands for; a control token stands for none. May be part of a character."""
        ends = memoryview(self.ends).cast("I")
        return self.pieces[ends[token - 1] if token else 0 : ends[token]]

    def shown(self, token: int) -> bytes:
        """Return the piece, or the name of a token that has none."""
        return self.piece(token) or self.silent.get(token, "").encode()
