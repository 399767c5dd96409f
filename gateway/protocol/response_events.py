"""Builder of a response's events, in the only valid order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from gateway.errors import ApiError
from gateway.protocol.events import (
    Created,
    DeltaEvent,
    InProgress,
    ItemEvent,
    Queued,
    TerminalEvent,
    Usage,
    terminal_event,
)
from gateway.protocol.output_items import OutputItem
from gateway.protocol.repeated import verbosity
from gateway.protocol.requests import ResponseCreate

Ending = tuple[list[ItemEvent], TerminalEvent]
"""The last events of a response: those that close its open item, and the terminal event."""
LATER_FIELDS: Final[dict[str, Any]] = {
    "completed_at": None,
    "background": False,
    "service_tier": "default",
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "max_tool_calls": None,
    "reasoning": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "user": None,
}
"""Fields of the response object that responses stored by earlier versions lack, with the values that they had."""


class ResponseEvents:
    """Builds the events of one response with any number of output items, one after the other. The log numbers them.

    `response_id` is a `resp_` id; `clock` returns epoch seconds; `temperature` and `top_p` are the effective values;
    `ignored` names the fields of the request that were accepted and have no effect; `extra` are further fields of the
    response object.
    """

    def __init__(
        self,
        request: ResponseCreate,
        *,
        response_id: str,
        model: str,
        clock: Callable[[], float],
        temperature: float,
        top_p: float,
        max_output_tokens: int,
        ignored: Sequence[str] = (),
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Create the response object, with status queued."""
        self._clock = clock
        self._ignored = tuple(ignored)
        self._open: OutputItem | None = None
        self._output: list[dict[str, Any]] = []
        self._response: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": int(clock()),
            "status": "queued",
            "model": model,
            "output": [],
            "parallel_tool_calls": False,  # one call per answer
            "tool_choice": msgspec.to_builtins(request.choice),
            "tools": msgspec.to_builtins(request.functions),
            "text": {
                "format": msgspec.to_builtins(request.format),
                "verbosity": verbosity(request.text and request.text.verbosity),
            },
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "metadata": request.metadata or {},
            "temperature": temperature,
            "top_p": top_p,
            **LATER_FIELDS,
            **request.repeated,
            "background": bool(request.background),
            "presence_penalty": request.presence_penalty or 0.0,
            "frequency_penalty": request.frequency_penalty or 0.0,
            "top_logprobs": request.top_logprobs or 0,
            "access_programs": None,
            "max_output_tokens": max_output_tokens,
            "previous_response_id": request.previous_response_id,
            "store": request.is_stored,
            "truncation": request.truncation or "disabled",
            "usage": None,
            **extra,
        }

    @property
    def response(self) -> dict[str, Any]:
        """The response as it stands, including the open item."""
        growing = [self._open.body("in_progress")] if self._open is not None else []
        return {**self._response, "output": [*self._output, *growing]}

    def created(self) -> Created:
        """Return the event that announces the response's id: the request is accepted."""
        status = "queued" if self._response["background"] else "in_progress"
        return Created(response=self._with_status(status), ignored=self._ignored)

    def queued(self, position: int, seconds: float) -> Queued:
        """Return the event for a waiting request; `position` 1 is next, after an estimated `seconds`."""
        response = self._with_status("queued")
        return Queued(response=response, queue_position=position, estimated_wait_seconds=round(seconds, 1))

    def in_progress(self) -> InProgress:
        """Return the event for a request that an engine has started."""
        return InProgress(response=self._with_status("in_progress"))

    def prompt_progress(self, processed: int, total: int) -> InProgress:
        """Return the event for a prompt of `total` tokens, of which an engine has `processed` some."""
        progress = {"processed": processed, "total": total}
        return replace(self.in_progress(), prompt_progress=progress)

    def open(self, item: OutputItem) -> list[ItemEvent]:
        """Open the next item of the answer; the previous one must be closed."""
        self._open = item
        return item.opened(len(self._output))

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> DeltaEvent:
        """Append to the open item."""
        assert self._open is not None, "no item is open"  # noqa: S101
        return self._open.delta(len(self._output), text, logprobs)

    def close(self, status: str = "completed") -> list[ItemEvent]:
        """Close the open item, if any, with `status` completed or incomplete."""
        if self._open is None:
            return []
        item, self._open = self._open, None
        events = item.closed(len(self._output), status)
        self._output = [*self._output, item.body(status)]
        return events

    def completed(self, usage: Usage, stop: str | None = None) -> Ending:
        """Return the last events if the model or the stop string `stop` ended the answer.

        They also end a request that only encoded a context.
        """
        closing, last = self._ended("completed", usage)
        return closing, last if stop is None else replace(last, stop_sequence=stop)

    def incomplete(self, usage: Usage, reason: str, explanation: str | None = None) -> Ending:
        """Return the last events of an answer that ended early: `reason` is max_output_tokens, steered or cancelled."""
        details = {"reason": reason} if explanation is None else {"reason": reason, "message": explanation}
        self._response["incomplete_details"] = details
        return self._ended("cancelled" if reason == "cancelled" else "incomplete", usage)

    def failed(self, error: ApiError) -> Ending:
        """Return the last events of a response that failed after its request was accepted."""
        self._response["error"] = {"code": error.code, "message": error.message, **error.details}
        self._response["incomplete_details"] = None
        return self._ended("failed", None)

    def _ended(self, status: str, usage: Usage | None) -> Ending:
        self._response["usage"] = None if usage is None else usage.body()
        self._response["completed_at"] = int(self._clock()) if status == "completed" else None
        closing = self.close("completed" if status == "completed" else "incomplete")
        return closing, terminal_event(self._with_status(status))

    def _with_status(self, status: str) -> dict[str, Any]:
        """Set the status, and return the response object for an event."""
        self._response["status"] = status
        return {**self._response, "output": self._output}
