"""The output items of an answer, and the events of their growth. A new kind of item is a new class here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gateway.protocol.events import (
    ArgumentsDelta,
    ArgumentsDone,
    DeltaEvent,
    ItemAdded,
    ItemDone,
    ItemEvent,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from gateway.protocol.items import Item, reasoning_item, text_item


class OutputItem(Protocol):
    """One growing item of an answer. `index` is its index in the response's `output`."""

    def opened(self, index: int) -> list[ItemEvent]:
        """Return the events that open the item."""

    def delta(self, index: int, text: str, logprobs: Sequence[dict[str, Any]]) -> DeltaEvent:
        """Append to the item, with the log probabilities of its tokens if requested."""

    def closed(self, index: int, status: str) -> list[ItemEvent]:
        """Return the events that close the item with `status` completed or incomplete."""

    def body(self, status: str) -> Item:
        """Return the item so far."""


class MessageItem:
    """A message with text for the user, in its only content part; `item_id` is a `msg_` id."""

    def __init__(self, item_id: str) -> None:
        """Create an empty message."""
        self._id = item_id
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def opened(self, index: int) -> list[ItemEvent]:
        """Return the events that open the item and its part."""
        item = {**self.body("in_progress"), "content": []}
        return [
            ItemAdded(output_index=index, item=item),
            PartAdded(output_index=index, item_id=self._id, content_index=0, part=self._part("")),
        ]

    def delta(self, index: int, text: str, logprobs: Sequence[dict[str, Any]]) -> DeltaEvent:
        """Append text."""
        self._texts.append(text)
        self._logprobs += logprobs
        return TextDelta(output_index=index, item_id=self._id, content_index=0, delta=text, logprobs=list(logprobs))

    def closed(self, index: int, status: str) -> list[ItemEvent]:
        """Return the events with the whole text, part and item."""
        text, logprobs = self.text, list(self._logprobs)
        return [
            TextDone(output_index=index, item_id=self._id, content_index=0, text=text, logprobs=logprobs),
            PartDone(output_index=index, item_id=self._id, content_index=0, part=self._part(text)),
            ItemDone(output_index=index, item=self.body(status)),
        ]

    def body(self, status: str) -> Item:
        """Return the item in the form that is listed and stored."""
        return text_item(self.text, item_id=self._id, status=status, logprobs=self._logprobs)

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}


class ReasoningItem:
    """What the model thinks before its answer, in one content part; `item_id` is an `rs_` id."""

    def __init__(self, item_id: str) -> None:
        """Create an empty item."""
        self._id = item_id
        self._texts: list[str] = []

    def opened(self, index: int) -> list[ItemEvent]:
        """Return the events that open the item and its part."""
        item = {**self.body("in_progress"), "content": []}
        return [
            ItemAdded(output_index=index, item=item),
            PartAdded(output_index=index, item_id=self._id, content_index=0, part=self._part("")),
        ]

    def delta(self, index: int, text: str, logprobs: Sequence[dict[str, Any]]) -> DeltaEvent:  # noqa: ARG002 - only messages have logprobs
        """Append text."""
        self._texts.append(text)
        return ReasoningDelta(output_index=index, item_id=self._id, content_index=0, delta=text)

    def closed(self, index: int, status: str) -> list[ItemEvent]:
        """Return the events with the whole text, part and item."""
        text = "".join(self._texts)
        return [
            ReasoningDone(output_index=index, item_id=self._id, content_index=0, text=text),
            PartDone(output_index=index, item_id=self._id, content_index=0, part=self._part(text)),
            ItemDone(output_index=index, item=self.body(status)),
        ]

    def body(self, status: str) -> Item:
        """Return the item in the form that is listed and stored."""
        return reasoning_item("".join(self._texts), item_id=self._id, status=status)

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


class CallItem:
    """A call of the function `name`; `item_id` is an `fc_` id, and the call's output will refer to `call_id`."""

    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        """Create a call without arguments."""
        self._id = item_id
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def opened(self, index: int) -> list[ItemEvent]:
        """Return the event that opens the item."""
        return [ItemAdded(output_index=index, item=self.body("in_progress"))]

    def delta(self, index: int, text: str, logprobs: Sequence[dict[str, Any]]) -> DeltaEvent:  # noqa: ARG002 - only messages have logprobs
        """Append to the arguments."""
        self._arguments.append(text)
        return ArgumentsDelta(output_index=index, item_id=self._id, delta=text)

    def closed(self, index: int, status: str) -> list[ItemEvent]:
        """Return the events with the whole arguments and item."""
        item = self.body(status)
        return [
            ArgumentsDone(output_index=index, item_id=self._id, name=self._name, arguments=item["arguments"]),
            ItemDone(output_index=index, item=item),
        ]

    def body(self, status: str) -> Item:
        """Return the item in the form that is listed and stored."""
        return {
            "id": self._id,
            "type": "function_call",
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
            "status": status,
        }
