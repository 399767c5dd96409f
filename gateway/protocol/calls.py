"""Reads an answer as it comes: text for the user, and calls of functions in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from gateway.protocol.detokenizer import overlap
from gateway.protocol.tool_prompt import CLOSING as LAST
from gateway.protocol.tool_prompt import OPENING

HEADER: Final = '\n{{"name": "{name}", "arguments": '
"""Between OPENING and the arguments."""
CLOSING: Final = f"}}\n{LAST}"
"""Behind the arguments. It cannot be in them: JSON has no bare line break in a string, and no `<` outside of one."""

_HEADER: Final = re.compile(re.escape(HEADER).replace(r"\{\{", r"\{").replace(r"\{name\}", r"([A-Za-z0-9_-]{1,64})"))
_LONGEST: Final = len(HEADER) + 64


@dataclass(frozen=True)
class Said:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Called:
    """A call of the function `name` begins."""

    name: str


@dataclass(frozen=True)
class Argued:
    """More of the call's arguments, a piece of JSON."""

    text: str


Part = Said | Called | Argued


class CallReader:
    """Tells calls from text; feed it the answer as it grows."""

    def __init__(self) -> None:
        """Begin outside of any call."""
        self._held = ""
        self._feed = self._text
        self.called = False
        """Whether a call has been read to its end."""

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` makes certain."""
        self._held += text
        parts: list[Part] = []
        while True:
            state = self._feed
            parts += state()
            if self._feed == state:
                return parts

    def finish(self) -> list[Part]:
        """The parts still held, now that the answer is over."""
        held, self._held = self._held, ""
        if self._feed == self._header:
            held = OPENING + held
        elif self._feed != self._text:
            return []  # the beginning of what ends a call
        return [Said(held)] if held else []

    def _text(self) -> list[Part]:
        before, found, after = self._held.partition(OPENING)
        if found:
            self._held, self._feed = after, self._header
            return [Said(before)] if before else []
        keep = overlap(before, OPENING)
        self._held = before[len(before) - keep :]
        text = before[: len(before) - keep]
        return [Said(text)] if text else []

    def _header(self) -> list[Part]:
        match = _HEADER.match(self._held)
        if match:
            self._held, self._feed = self._held[match.end() :], self._arguments
            return [Called(match[1])]
        if len(self._held) > _LONGEST:  # no call after all
            text, self._held, self._feed = OPENING + self._held, "", self._text
            return [Said(text)]
        return []

    def _arguments(self) -> list[Part]:
        before, found, _ = self._held.partition(CLOSING)
        if found:
            self._held, self._feed, self.called = "", self._over, True
            return [Argued(before)] if before else []
        keep = overlap(before, CLOSING)
        self._held = before[len(before) - keep :]
        text = before[: len(before) - keep]
        return [Argued(text)] if text else []

    def _over(self) -> list[Part]:
        self._held = ""  # one call an answer; the grammar lets nothing follow it
        return []
