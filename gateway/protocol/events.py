"""The events of one response, in the only valid order.

An answer is a list of output items. `ResponseEvents.open` accepts any `OutputItem`, so a new kind of item is a new
class next to `MessageItem`.
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
    """Token counts of one turn; `cached` of the `input` tokens were not computed again."""

    input: int
    cached: int
    output: int

    def body(self) -> dict[str, Any]:
        """Return the `usage` object in OpenAI's format."""
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input + self.output,
        }


class OutputItem(Protocol):
    """One growing item of an answer. Its methods return events without the fields that the response adds."""

    def opened(self) -> list[Event]:
        """Return the events that open the item."""

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """Append to the item, with the log probabilities of its tokens if requested."""

    def closed(self, status: str) -> list[Event]:
        """Return the events that close the item with `status` completed or incomplete."""

    def body(self, status: str) -> Item:
        """Return the item so far."""


class MessageItem:
    """A message with text for the user; `item_id` is a `msg_` id."""

    def __init__(self, item_id: str) -> None:
        """Create an empty message."""
        self._id = item_id
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def opened(self) -> list[Event]:
        """Return the events that open the item and its only part."""
        item = {**self.body("in_progress"), "content": []}
        return [
            {"type": "response.output_item.added", "item": item},
            self._part("response.content_part.added", part=self._content("")),
        ]

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """Append text."""
        self._texts.append(text)
        self._logprobs += logprobs
        return self._part("response.output_text.delta", delta=text, logprobs=list(logprobs))

    def closed(self, status: str) -> list[Event]:
        """Return the events with the whole text, part and item."""
        item = self.body(status)
        return [
            self._part("response.output_text.done", text=self.text, logprobs=list(self._logprobs)),
            self._part("response.content_part.done", part=self._content(self.text)),
            {"type": "response.output_item.done", "item": item},
        ]

    def body(self, status: str) -> Item:
        """Return the item in the form that is listed and stored."""
        return text_item(self.text, item_id=self._id, status=status, logprobs=self._logprobs)

    def _part(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._id, "content_index": 0, **fields}

    @staticmethod
    def _content(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}


class CallItem:
    """A call of the function `name`; `item_id` is an `fc_` id, and the call's output will refer to `call_id`."""

    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        """Create a call without arguments."""
        self._id = item_id
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def opened(self) -> list[Event]:
        """Return the event that opens the item."""
        return [{"type": "response.output_item.added", "item": self.body("in_progress")}]

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:  # noqa: ARG002 - only messages have logprobs
        """Append to the arguments."""
        self._arguments.append(text)
        return {"type": "response.function_call_arguments.delta", "item_id": self._id, "delta": text}

    def closed(self, status: str) -> list[Event]:
        """Return the events with the whole arguments and item."""
        item = self.body(status)
        arguments = {"item_id": self._id, "name": self._name, "arguments": item["arguments"]}
        return [
            {"type": "response.function_call_arguments.done", **arguments},
            {"type": "response.output_item.done", "item": item},
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


class ResponseEvents:
    """Builds the events of one response with any number of output items, one after the other. The log numbers them.

    `response_id` is a `resp_` id; `created_at` is in epoch seconds; `temperature` and `top_p` are the effective values;
    `ignored` names the fields of the request that were accepted and have no effect.
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
        ignored: Sequence[str] = (),
    ) -> None:
        """Create the response object, with status queued."""
        self._ignored = {"ignored": list(ignored)} if ignored else {}
        self._open: OutputItem | None = None
        self._response: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": created_at,
            "status": "queued",
            "model": model,
            "output": [],
            "parallel_tool_calls": False,  # one call per answer
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
            "store": request.is_stored,
            "truncation": request.truncation or "disabled",
            "usage": None,
        }

    @property
    def response(self) -> dict[str, Any]:
        """The response as it stands, including the open item."""
        growing = [self._open.body("in_progress")] if self._open is not None else []
        return {**self._response, "output": [*self._response["output"], *growing]}

    def created(self) -> Event:
        """Return the event that announces the response's id: the request is accepted."""
        return {**self._about("response.created", "in_progress"), **self._ignored}

    def queued(self, position: int, seconds: float) -> Event:
        """Return the event for a waiting request; `position` 1 is next, after an estimated `seconds`."""
        extra = {"queue_position": position, "estimated_wait_seconds": round(seconds, 1)}
        return {**self._about("response.queued", "queued"), **extra}

    def in_progress(self) -> Event:
        """Return the event for a request that an engine has started."""
        return self._about("response.in_progress", "in_progress")

    def open(self, item: OutputItem) -> list[Event]:
        """Open the next item of the answer; the previous one must be closed."""
        self._open = item
        return [self._of_item(event) for event in item.opened()]

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Event:
        """Append to the open item."""
        assert self._open is not None, "no item is open"  # noqa: S101
        return self._of_item(self._open.delta(text, logprobs))

    def close(self, status: str = "completed") -> list[Event]:
        """Close the open item, if any, with `status` completed or incomplete."""
        if self._open is None:
            return []
        item, events = self._open, [self._of_item(event) for event in self._open.closed(status)]
        self._open = None
        self._response["output"] = [*self._response["output"], item.body(status)]
        return events

    def completed(self, usage: Usage) -> list[Event]:
        """Return the last events if the model ended its answer, or the request only encoded a context."""
        return self._ended("response.completed", "completed", usage)

    def incomplete(self, usage: Usage, reason: str, explanation: str | None = None) -> list[Event]:
        """Return the last events of an answer that ended early: `reason` is max_output_tokens, steered or cancelled."""
        details = {"reason": reason} if explanation is None else {"reason": reason, "message": explanation}
        self._response["incomplete_details"] = details
        return self._ended("response.incomplete", "cancelled" if reason == "cancelled" else "incomplete", usage)

    def failed(self, error: ApiError) -> list[Event]:
        """Return the last events of a response that failed after its request was accepted."""
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


def terminal_event(response: dict[str, Any], *, number: int) -> Event:
    """Return the terminal event of a response that ended long ago, whose other events are no longer available."""
    kinds = {"completed": "response.completed", "failed": "response.failed"}
    kind = kinds.get(response["status"], "response.incomplete")
    return {"type": kind, "sequence_number": number, "response": response}


def refusal(error: ApiError, **address: str) -> Event:
    """Return the `error` event of a rejected message; `address` is the lane and response that the message named."""
    return {"type": "error", "status": error.status, "error": error.body(), **address}
