"""Incremental conversion of token ids to text, without partial characters and up to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence


class Detokenizer:
    """Converts one answer's tokens to text deltas.

    One Chinese character is often several tokens, so bytes are held back until they form a character. Text that may be
    the start of a stop string is held back until this is decided.
    """

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        """`piece` returns a token's bytes; `stops` are non-empty strings that end the answer and are cut off."""
        self._piece = piece
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stop: str | None = None
        """The stop string that was found; all later tokens are ignored."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.stop is not None

    def feed(self, ids: Sequence[int]) -> str:
        """Return the text that can no longer change now that `ids` have arrived."""
        if self.stopped:
            return ""
        return self._release(self._decoder.decode(b"".join(map(self._piece, ids))))

    @property
    def unfinished(self) -> int:
        """Number of bytes at the end of the tokens that are not a whole character yet."""
        return len(self._decoder.getstate()[0])

    def finish(self) -> str:
        """Return the text still held back, without an unfinished character."""
        held, self._held = self._held, ""
        return held

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [(at, stop) for at, stop in ((text.find(stop), stop) for stop in self._stops) if at >= 0]
        if found:
            (at, self.stop), self._held = min(found), ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`; `stop` is not empty."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0


def whole_tokens(pieces: Iterable[bytes], visible: bytes) -> tuple[int, str]:
    """Return how many tokens lie within the prefix `visible` of their text, and the text that remains after them.

    `pieces` are the tokens' bytes. A token whose bytes end in the middle of a character counts only together with the
    tokens that complete the character.
    """
    count, end, done = 0, 0, 0
    for i, piece in enumerate(pieces, 1):
        done += len(piece)
        if done > len(visible):
            break
        if done == len(visible) or visible[done] & 0xC0 != 0x80:  # 0x80 to 0xBF continue a character
            count, end = i, done
    return count, visible[end:].decode(errors="ignore")
