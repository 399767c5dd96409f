"""Incremental parser that separates an answer into text for the user and function calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from gateway.protocol.detokenizer import overlap
from gateway.protocol.tool_prompt import CLOSING as LAST
from gateway.protocol.tool_prompt import MAX_NAME, NAME, OPENING

HEADER: Final = '\n{{"name": "{name}", "arguments": '
"""Text between OPENING and the arguments."""
CLOSING: Final = f"}}\n{LAST}"
"""Text after the arguments. They cannot contain it: JSON has no bare line break in a string, and no `<` outside one."""

_HEADER: Final = re.compile(re.escape(HEADER).replace(r"\{\{", r"\{").replace(r"\{name\}", f"({NAME})"))
_LONGEST: Final = len(HEADER) + MAX_NAME


@dataclass(frozen=True)
class TextPart:
    """More text for the user."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The start of a call of the function `name`."""

    name: str


@dataclass(frozen=True)
class ArgumentsPart:
    """More of the call's arguments, which are JSON."""

    text: str


Part = TextPart | CallStart | ArgumentsPart


class CallReader:
    """Separates calls from text. Pass each piece of the answer to `feed`.

    With `whole` a grammar constrains the whole answer, which is then a call as soon as it starts like one.
    """

    def __init__(self, *, whole: bool = False) -> None:
        """Start outside of a call."""
        self._whole = whole
        self._held = ""
        self._feed = self._text
        self.called = False
        """Whether a complete call has been read."""

    def feed(self, text: str) -> list[Part]:
        """Return the parts that can no longer change now that `text` has arrived."""
        self._held += text
        parts: list[Part] = []
        while True:
            state = self._feed
            parts += state()
            if self._feed == state:
                return parts

    def finish(self) -> list[Part]:
        """Return the text still held at the end of the answer.

        The part of a call's header or of its CLOSING is not text: the answer was cut off within it.
        """
        held, self._held = self._held, ""
        return [TextPart(held)] if held and self._feed == self._text and not self._whole else []

    def _text(self) -> list[Part]:
        before, found, after = self._held.partition(OPENING)
        if found:
            self._held, self._feed = after, self._header
            return [TextPart(before)] if before else []
        keep = overlap(before, OPENING)
        self._held = before[len(before) - keep :]
        text = before[: len(before) - keep]
        return [TextPart(text)] if text else []

    def _header(self) -> list[Part]:
        match = _HEADER.match(self._held)
        if match:
            self._held, self._feed = self._held[match.end() :], self._arguments
            return [CallStart(match[1])]
        if len(self._held) > _LONGEST:  # not a call
            text, self._held, self._feed = OPENING + self._held, "", self._text
            return [TextPart(text)]
        return []

    def _arguments(self) -> list[Part]:
        before, found, _ = self._held.partition(CLOSING)
        if found:
            self._held, self._feed, self.called = "", self._over, True
            return [ArgumentsPart(before)] if before else []
        keep = overlap(before, CLOSING)
        self._held = before[len(before) - keep :]
        text = before[: len(before) - keep]
        return [ArgumentsPart(text)] if text else []

    def _over(self) -> list[Part]:
        self._held = ""  # one call per answer; the grammar allows nothing after it
        return []
