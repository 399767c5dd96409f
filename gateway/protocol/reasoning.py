"""A model's reasoning: its tags in answers, and its item in requests."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

OPEN: Final = "<think>"
CLOSE: Final = "</think>"
"""Tags around reasoning."""
ReasoningStart = Literal["", "tagged", "open"]
"""Where reasoning starts: nowhere, at a tag that the model writes, or in the prompt, which the answer continues."""


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
