"""One response as the events of docs/api.md, in the only order they may come.

An answer is a row of output items. Another kind of item is another class beside `MessageItem`: `ResponseEvents.open`
takes any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from gateway.errors import ApiError
from gateway.protocol.items import Item, text_item
from gateway.protocol.requests import ResponseCreate

Event = dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens of one turn; `cached` of the prompt's were not computed again."""

    input: int
    cached: int
    output: int

    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input + self.output,
        }


class OutputItem(Protocol):
    """One item of an answer as it grows: each method gives the fields of the events that tell it."""

    def opened(self) -> list[Event]:
        """It begins."""

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """More of it, with the log probabilities of its tokens where they were asked for."""

    def closed(self, status: str) -> list[Event]:
        """It is whole, or `incomplete`."""

    def body(self, status: str) -> Item:
        """All of it so far."""


class MessageItem:
    """Text for the user; `item_id` is a `msg_` id."""

    def __init__(self, item_id: str) -> None:
        """Begin empty."""
        self._id = item_id
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._texts)

    def opened(self) -> list[Event]:
        """The item, then its only part."""
        item = {**self.body("in_progress"), "content": []}
        return [
            {"type": "response.output_item.added", "item": item},
            self._part("response.content_part.added", part=self._content("")),
        ]

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """More text."""
        self._texts.append(text)
        self._logprobs += logprobs
        return self._part("response.output_text.delta", delta=text, logprobs=list(logprobs))

    def closed(self, status: str) -> list[Event]:
        """The text, the part and the item, whole."""
        item = self.body(status)
        return [
            self._part("response.output_text.done", text=self.text, logprobs=list(self._logprobs)),
            self._part("response.content_part.done", part=self._content(self.text)),
            {"type": "response.output_item.done", "item": item},
        ]

    def body(self, status: str) -> Item:
        """As it is listed and stored."""
        return text_item(self.text, item_id=self._id, status=status, logprobs=self._logprobs)

    def _part(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._id, "content_index": 0, **fields}

    @staticmethod
    def _content(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}


class CallItem:
    """A call of the function `name`; `item_id` is an `fc_` id, `call_id` the one that its output will name."""

    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        """Begin without arguments."""
        self._id = item_id
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def opened(self) -> list[Event]:
        """The item."""
        return [{"type": "response.output_item.added", "item": self.body("in_progress")}]

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:  # noqa: ARG002 - a message's alone
        """More of its arguments."""
        self._arguments.append(text)
        return {"type": "response.function_call_arguments.delta", "item_id": self._id, "delta": text}

    def closed(self, status: str) -> list[Event]:
        """The arguments and the item, whole."""
        item = self.body(status)
        arguments = {"item_id": self._id, "name": self._name, "arguments": item["arguments"]}
        return [
            {"type": "response.function_call_arguments.done", **arguments},
            {"type": "response.output_item.done", "item": item},
        ]

    def body(self, status: str) -> Item:
        """As it is listed and stored."""
        return {
            "id": self._id,
            "type": "function_call",
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
            "status": status,
        }


class ResponseEvents:
    """Shapes the events of one answer: any number of output items, one after the other. The log numbers them.

    `response_id` is a `resp_` id; `created_at` is in seconds of the epoch; `temperature` and `top_p` are the values in
    force.
    """

    def __init__(
        self,
        request: ResponseCreate,
        *,
        response_id: str,
        model: str,
        created_at: int,
        temperature: float,
        top_p: float,
        max_output_tokens: int,
    ) -> None:
        """Begin with nothing told."""
        self._open: OutputItem | None = None
        self._response: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": created_at,
            "status": "queued",
            "model": model,
            "output": [],
            "parallel_tool_calls": False,  # one call an answer
            "tool_choice": msgspec.to_builtins(request.choice),
            "tools": msgspec.to_builtins(request.functions),
            "text": {"format": msgspec.to_builtins(request.format)},
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "metadata": request.metadata or {},
            "temperature": temperature,
            "top_p": top_p,
            "access_programs": None,
            "max_output_tokens": max_output_tokens,
            "previous_response_id": request.previous_response_id,
            "store": request.remembered,
            "truncation": request.truncation or "disabled",
            "usage": None,
        }

    @property
    def response(self) -> dict[str, Any]:
        """The response as it stands, the item that grows included."""
        growing = [self._open.body("in_progress")] if self._open is not None else []
        return {**self._response, "output": [*self._response["output"], *growing]}

    def created(self) -> Event:
        """The request is taken; its id is known from here on."""
        return self._about("response.created", "in_progress")

    def queued(self, position: int, seconds: float) -> Event:
        """It waits: `position` 1 is next, for about `seconds`."""
        extra = {"queue_position": position, "estimated_wait_seconds": round(seconds, 1)}
        return {**self._about("response.queued", "queued"), **extra}

    def in_progress(self) -> Event:
        """An engine has it."""
        return self._about("response.in_progress", "in_progress")

    def open(self, item: OutputItem) -> list[Event]:
        """Another item of the answer begins; the one before it is closed."""
        self._open = item
        return [self._of_item(event) for event in item.opened()]

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Event:
        """More of the item that is open."""
        assert self._open is not None, "an item was opened"  # noqa: S101
        return self._of_item(self._open.delta(text, logprobs))

    def close(self, status: str = "completed") -> list[Event]:
        """The item that is open, if any, is `completed` or `incomplete`."""
        if self._open is None:
            return []
        item, events = self._open, [self._of_item(event) for event in self._open.closed(status)]
        self._open = None
        self._response["output"] = [*self._response["output"], item.body(status)]
        return events

    def completed(self, usage: Usage) -> list[Event]:
        """The model ended its answer, or there was only a context to encode."""
        return self._ended("response.completed", "completed", usage)

    def incomplete(self, usage: Usage, reason: str, explanation: str | None = None) -> list[Event]:
        """The answer was ended for `reason`: max_output_tokens, steered or cancelled; `explanation` says more."""
        details = {"reason": reason} if explanation is None else {"reason": reason, "message": explanation}
        self._response["incomplete_details"] = details
        return self._ended("response.incomplete", "cancelled" if reason == "cancelled" else "incomplete", usage)

    def failed(self, error: ApiError) -> list[Event]:
        """It was taken, and cannot be answered."""
        self._response["error"] = {"code": error.code, "message": error.message}
        self._response["incomplete_details"] = None
        return [*self.close("incomplete"), self._about("response.failed", "failed")]

    def _ended(self, kind: str, status: str, usage: Usage) -> list[Event]:
        self._response["usage"] = usage.body()
        return [*self.close("completed" if status == "completed" else "incomplete"), self._about(kind, status)]

    def _about(self, kind: str, status: str) -> Event:
        self._response["status"] = status
        return {"type": kind, "response": dict(self._response)}

    def _of_item(self, event: Event) -> Event:
        return {**event, "output_index": len(self._response["output"])}


def retold(response: dict[str, Any], *, number: int) -> Event:
    """The terminal event of a response that ended long ago: of all its events only this one is still known."""
    kinds = {"completed": "response.completed", "failed": "response.failed"}
    kind = kinds.get(response["status"], "response.incomplete")
    return {"type": kind, "sequence_number": number, "response": response}


def refusal(error: ApiError, **address: str) -> Event:
    """The `error` event of a message that was not taken; `address` is the lane and response that it named."""
    return {"type": "error", "status": error.status, "error": error.body(), **address}
