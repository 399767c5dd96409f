"""Conversion of a response's events to Anthropic's Messages API: events of a stream, a whole message, or an error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import msgspec

from gateway.errors import (
    ApiError,
    ContextLengthExceededError,
    EngineUnavailableError,
    QueueFullError,
    QueueTimeoutError,
)
from gateway.protocol.events import (
    ArgumentsDelta,
    Completed,
    Created,
    Event,
    Incomplete,
    ItemAdded,
    ItemDone,
    ReasoningDelta,
    TerminalEvent,
    TextDelta,
    Usage,
)

Json = dict[str, Any]

OVERLOADED: Final = 529
"""Anthropic's status of a server that has too much to do."""
_OVERLOADED: Final = (QueueFullError, QueueTimeoutError, EngineUnavailableError)
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    OVERLOADED: "overloaded_error",
}
"""Anthropic's type of an error by its status; all others are `invalid_request_error`."""
PING: Final[Json] = {"type": "ping"}
"""The event that keeps a silent stream alive."""


class MessageAnswer:
    """One message of the model. Pass the events in order to `feed`, or the terminal event to `whole`."""

    def __init__(self, response_id: str, *, model: str, usage: Usage, shows_thinking: bool = False) -> None:
        """`usage` has the number of prompt tokens; how many of them are cached is not known before the end.

        `shows_thinking` adds blocks with the model's reasoning.
        """
        self._head = {
            "id": f"msg_{response_id.removeprefix('resp_')}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._usage = usage
        self._shows_thinking = shows_thinking
        self._started = 0
        """Number of blocks that have started."""
        self._is_open = False

    def feed(self, event: Event) -> list[Json]:
        """Return the events of a stream for an event that is not a failure."""
        match event:
            case Created():
                return [{"type": "message_start", "message": self._message([], None, None, self._usage)}]
            case TextDelta():
                opened = [] if self._is_open else [self._start({"type": "text", "text": ""})]
                return [*opened, self._delta({"type": "text_delta", "text": event.delta})]
            case ReasoningDelta() if self._shows_thinking:
                opened = [] if self._is_open else [self._start({"type": "thinking", "thinking": "", "signature": ""})]
                return [*opened, self._delta({"type": "thinking_delta", "thinking": event.delta})]
            case ItemDone(item={"type": "reasoning", "id": item_id}) if self._is_open:
                return [self._delta({"type": "signature_delta", "signature": item_id}), *self._stop()]
            case ItemAdded(item={"type": "function_call", "call_id": call_id, "name": name}):
                return [self._start({"type": "tool_use", "id": _call_id(call_id), "name": name, "input": {}})]
            case ArgumentsDelta():
                return [self._delta({"type": "input_json_delta", "partial_json": event.delta})]
            case ItemDone():
                return self._stop()
            case Completed() | Incomplete():
                return [*self._stop(), self._ended(event), {"type": "message_stop"}]
        return []

    def whole(self, event: TerminalEvent) -> Json:
        """Return the message for a request without `stream`."""
        content = [block for item in event.response["output"] for block in self._blocks(item)]
        return self._message(content, _stop_reason(event), _stop_sequence(event), _usage(event))

    def _blocks(self, item: Json) -> list[Json]:
        """Return the blocks of an output item. A call that was cut off has no arguments to show, and is left out."""
        if item["type"] == "reasoning":
            text = "".join(part["text"] for part in item["content"])
            return [{"type": "thinking", "thinking": text, "signature": item["id"]}] if self._shows_thinking else []
        if item["type"] != "function_call":
            return [{"type": "text", "text": part["text"]} for part in item["content"] if part["text"]]
        with suppress(msgspec.DecodeError):
            arguments = msgspec.json.decode(item["arguments"])
            return [{"type": "tool_use", "id": _call_id(item["call_id"]), "name": item["name"], "input": arguments}]
        return []

    def _message(self, content: list[Json], reason: str | None, sequence: str | None, usage: Usage) -> Json:
        ended = {"stop_reason": reason, "stop_sequence": sequence}
        return {**self._head, "content": content, **ended, "usage": _usage_body(usage)}

    def _start(self, block: Json) -> Json:
        self._is_open = True
        self._started += 1
        return {"type": "content_block_start", "index": self._started - 1, "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._started - 1, "delta": delta}

    def _stop(self) -> list[Json]:
        was_open, self._is_open = self._is_open, False
        return [{"type": "content_block_stop", "index": self._started - 1}] if was_open else []

    @staticmethod
    def _ended(event: TerminalEvent) -> Json:
        delta = {"stop_reason": _stop_reason(event), "stop_sequence": _stop_sequence(event)}
        return {"type": "message_delta", "delta": delta, "usage": _usage_body(_usage(event))}


def error_status(error: ApiError) -> int:
    """Return the HTTP status that Anthropic's API has for an error."""
    return OVERLOADED if isinstance(error, _OVERLOADED) else error.status


def error_body(error: ApiError, request_id: str, *, status: int | None = None) -> Json:
    """Return an error in Anthropic's form, which is also the event `error` of a stream.

    `status` is the HTTP status if it is not the error's own.
    """
    message = error.message
    if isinstance(error, ContextLengthExceededError):
        message = f"prompt is too long: {message}"  # on these words Claude Code shortens its conversation
    kind = _ERROR_TYPES.get(status or error_status(error), "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def _call_id(call_id: str) -> str:
    return f"toolu_{call_id.removeprefix('call_')}"


def _stop_reason(event: TerminalEvent) -> str:
    response = event.response
    is_cut = (response["incomplete_details"] or {}).get("reason") == "max_output_tokens"
    if is_cut or not response["output"]:  # without output, the request was for no tokens
        return "max_tokens"
    if _stop_sequence(event) is not None:
        return "stop_sequence"
    return "tool_use" if any(item["type"] == "function_call" for item in response["output"]) else "end_turn"


def _stop_sequence(event: TerminalEvent) -> str | None:
    return event.stop_sequence if isinstance(event, Completed) else None


def _usage(event: TerminalEvent) -> Usage:
    usage = event.response["usage"]
    return Usage(usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"])


def _usage_body(usage: Usage) -> Json:
    """Return token counts in Anthropic's form, in which `input_tokens` are the ones that were computed."""
    return {
        "input_tokens": usage.input - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
    }
