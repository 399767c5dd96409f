"""A model's reasoning: its tags in answers, and its item in requests."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

OPEN: Final = "<think>"
CLOSE: Final = "</think>"
"""Tags around reasoning."""
START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
MESSAGE: Final = "<|message|>"
END: Final = "<|end|>"
CONSTRAIN: Final = "<|constrain|>"
MARKERS: Final = (START, CHANNEL, MESSAGE, END)
"""Tokens of gpt-oss's format, in which an answer is several messages, each in the channel that its header names."""
ReasoningStart = Literal["", "tagged", "open", "channels"]
"""Where reasoning starts: nowhere, at a tag that the model writes, or in the prompt, which the answer continues. With
`channels`, the header of each message says whether it is reasoning."""


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
