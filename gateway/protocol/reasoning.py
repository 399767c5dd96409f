"""Reasoning: the item of a request, and the split of a model's text into reasoning in `<think>` tags and answer."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

OPEN: Final = "<think>"
CLOSE: Final = "</think>"
"""Tags around reasoning."""


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    """A piece of reasoning."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning"):
    """A model's reasoning before its answer; without content it has no effect."""

    content: list[ReasoningText] = []

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(part.text for part in self.content)


class Split(NamedTuple):
    """Parts of a text."""

    thinking: str
    answer: str


class ReasoningSplitter:
    """Splits one text that arrives in pieces. A text that does not begin with `<think>` is all answer.

    With `inside` the text continues reasoning: its `<think>` was in the prompt.

    White space at the beginning of both parts is dropped.
    """

    def __init__(self, *, inside: bool = False) -> None:
        """Start before the text."""
        self._held = ""
        """Text that may be the beginning of a tag, or white space at the beginning of a part."""
        self._started = self._thinks = self._trims = inside
        """Whether white space at the beginning of the held text is dropped."""

    def feed(self, text: str) -> Split:
        """Return the parts that `text` completes."""
        self._held += text
        if not self._started and not self._start():
            return Split("", "")
        thinking = self._take_thinking() if self._thinks else ""
        return Split(thinking, "" if self._thinks else self._take_all())

    def finish(self) -> Split:
        """Return what is left at the end of the text."""
        rest, self._held = self._held, ""
        return Split(rest, "") if self._thinks else Split("", rest)

    def _start(self) -> bool:
        """Decide whether the text begins with reasoning; return False while that is open."""
        start = self._held.lstrip()
        if OPEN.startswith(start) and start != OPEN:
            return False
        self._started, self._thinks = True, start.startswith(OPEN)
        if self._thinks:
            self._held = start.removeprefix(OPEN)
            self._trims = True
        return True

    def _take_thinking(self) -> str:
        thinking, tag, rest = self._take_all().partition(CLOSE)
        if tag:
            self._held, self._thinks, self._trims = rest, False, True
            return thinking
        kept = next((n for n in range(len(CLOSE) - 1, 0, -1) if thinking.endswith(CLOSE[:n])), 0)
        self._held = thinking[len(thinking) - kept :]
        return thinking[: len(thinking) - kept]

    def _take_all(self) -> str:
        taken, self._held = self._held.lstrip() if self._trims else self._held, ""
        self._trims = self._trims and not taken
        return taken
