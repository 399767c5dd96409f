"""Token ids to text as they come: never half a character, never past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class Detokenizer:
    """Turns one answer's tokens into deltas.

    One Chinese character is often several tokens, so bytes wait until they are a character; text that may be the
    beginning of a stop string waits until it is or is not.
    """

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        """`piece` gives a token's bytes; `stops` are non-empty strings that end the answer and are not part of it."""
        self._piece = piece
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        """Whether a stop string has come; all later tokens are ignored."""

    def feed(self, ids: Sequence[int]) -> str:
        """The text that `ids` make certain."""
        if self.stopped:
            return ""
        return self._release(self._decoder.decode(b"".join(map(self._piece, ids))))

    def finish(self) -> str:
        """The text still held, an unfinished character as U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without all of it; `stop` is not empty."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0
