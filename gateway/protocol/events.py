"""The events of a response, as typed structs. msgspec encodes them in the format of OpenAI's Responses API.

`response_events.py` builds them, `log.py` numbers them, and other APIs translate them, as `completions.py` does. Items,
content parts and the response object are JSON objects, because they are stored and returned in that form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from gateway.errors import ApiError
from gateway.protocol.items import Item


@dataclass(frozen=True)
class Usage:
    """Token counts of one turn: `cached` of `input` were not computed again, `reasoning` of `output` are reasoning."""

    input: int
    cached: int
    output: int
    reasoning: int = 0

    def body(self) -> dict[str, Any]:
        """Return the `usage` object in OpenAI's format."""
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        }


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event for a client. The JSON has no field that is None by default and has not been set.

    Because of `omit_defaults`, a field that must always be in the JSON has no default.
    """

    sequence_number: int | None = None
    """Number in the log of the response, from 0; None before the log has numbered it, and for events of no response."""
    stream_id: str | None = None
    """The lane of the client that receives the event, if it is named."""

    @property
    def type(self) -> str:
        """The value of `type` in the JSON."""
        return str(self.__struct_config__.tag)


class ResponseEvent(Event, frozen=True, kw_only=True):
    """A change of the response's status."""

    response: dict[str, Any]
    """The response object as of this event."""


class Created(ResponseEvent, frozen=True, kw_only=True, tag="response.created"):
    """The request is accepted; the response has an id."""

    ignored: tuple[str, ...] = ()
    """Names of the request's fields that were accepted and have no effect."""


class Queued(ResponseEvent, frozen=True, kw_only=True, tag="response.queued"):
    """The request waits for an engine."""

    queue_position: int
    """1 is next."""
    estimated_wait_seconds: float


class KeepAlive(Event, frozen=True, kw_only=True, tag="keepalive"):
    """Nothing has happened for a while; clients, among them OpenAI's, ignore the event."""


class InProgress(ResponseEvent, frozen=True, kw_only=True, tag="response.in_progress"):
    """An engine has started the request, or has computed a part of a long prompt."""

    prompt_progress: dict[str, int] | None = None
    """Tokens of the prompt that are `processed`, of its `total`; the names are llama-server's."""


class TerminalEvent(ResponseEvent, frozen=True, kw_only=True):
    """The last event of a response, which has exactly one."""


class Completed(TerminalEvent, frozen=True, kw_only=True, tag="response.completed"):
    """The model ended its answer, or the request only encoded a context."""

    stop_sequence: str | None = None
    """The stop string that ended the answer, if one did."""


class Incomplete(TerminalEvent, frozen=True, kw_only=True, tag="response.incomplete"):
    """The answer ended early; the response's `incomplete_details` say why."""


class Failed(TerminalEvent, frozen=True, kw_only=True, tag="response.failed"):
    """The response failed after its request was accepted; its `error` says why."""


class ItemEvent(Event, frozen=True, kw_only=True):
    """A change of an output item."""

    output_index: int
    """Index of the item in the response's `output`."""


class ItemAdded(ItemEvent, frozen=True, kw_only=True, tag="response.output_item.added"):
    """An item starts."""

    item: Item


class ItemDone(ItemEvent, frozen=True, kw_only=True, tag="response.output_item.done"):
    """An item is complete, or incomplete because the response ended early."""

    item: Item


class DeltaEvent(ItemEvent, frozen=True, kw_only=True):
    """More of an item's text or arguments."""

    item_id: str
    delta: str

    @property
    def part(self) -> tuple[object, ...]:
        """What the delta extends: deltas of one part can be merged."""
        return type(self), self.item_id


class TextDelta(DeltaEvent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """More text of a message."""

    content_index: int
    logprobs: list[dict[str, Any]]
    """Log probabilities of the text's tokens, if the request asks for them."""

    @property
    def part(self) -> tuple[object, ...]:
        """What the delta extends: deltas of one part can be merged."""
        return type(self), self.item_id, self.content_index


class ReasoningDelta(DeltaEvent, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """More of the model's reasoning."""

    content_index: int

    @property
    def part(self) -> tuple[object, ...]:
        """What the delta extends: deltas of one part can be merged."""
        return type(self), self.item_id, self.content_index


class ArgumentsDelta(DeltaEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""


class ArgumentsDone(ItemEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """A call's arguments are complete."""

    item_id: str
    name: str
    arguments: str


class PartEvent(ItemEvent, frozen=True, kw_only=True):
    """A change of a content part of a message or of reasoning."""

    item_id: str
    content_index: int


class PartAdded(PartEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    """A content part starts."""

    part: dict[str, Any]


class TextDone(PartEvent, frozen=True, kw_only=True, tag="response.output_text.done"):
    """The text of a part is complete."""

    text: str
    logprobs: list[dict[str, Any]]


class ReasoningDone(PartEvent, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """The reasoning is complete."""

    text: str


class PartDone(PartEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    """A content part is complete."""

    part: dict[str, Any]


class Refused(Event, frozen=True, kw_only=True, tag="error"):
    """A message was rejected, or an event could not be encoded."""

    status: int
    """The HTTP status of the error."""
    error: dict[str, Any]
    response_id: str | None = None
    """The response that the message named, if any."""
    request_id: str | None = None
    """The id under which the error is logged."""


class NamedSteer(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted steer by its id."""

    id: str
    previous_response_id: str


class ReturnedSteer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A failed steer with its input, and with its id if it had been accepted."""

    previous_response_id: str
    input: Any
    id: str | None = None


class RequiredOutput(msgspec.Struct, frozen=True, kw_only=True, tag="function_call_output"):
    """A tool result that a response needs before any other input."""

    call_id: str
    name: str


class SteerFailure(msgspec.Struct, frozen=True, kw_only=True, tag="invalid_request_error"):
    """Why a steer failed."""

    code: str
    message: str


class SteerAccepted(Event, frozen=True, kw_only=True, tag="response.steer.accepted"):
    """A steer waits for the end of the response."""

    steer: NamedSteer


class SteerPending(Event, frozen=True, kw_only=True, tag="response.steer.pending"):
    """A steer waits for tool results."""

    steer: NamedSteer
    reason: Literal["waiting_for_required_input"]
    required_input: list[RequiredOutput]


class SteerFailed(Event, frozen=True, kw_only=True, tag="response.steer.failed"):
    """A steer was not used."""

    error: SteerFailure
    steer: ReturnedSteer


_TERMINAL: dict[str, type[TerminalEvent]] = {"completed": Completed, "failed": Failed}


def terminal_event(response: dict[str, Any], *, number: int | None = None) -> TerminalEvent:
    """Return the terminal event of an ended response; `number` is its sequence number, if it is not logged."""
    return _TERMINAL.get(response["status"], Incomplete)(response=response, sequence_number=number)


def refusal(
    error: ApiError, *, request_id: str | None = None, response_id: str | None = None, stream_id: str | None = None
) -> Refused:
    """Return the `error` event of a rejected message, with the lane and the response that the message named."""
    return Refused(
        status=error.status,
        error=error.body(),
        request_id=request_id,
        response_id=response_id,
        stream_id=stream_id,
    )


def on_lane(event: Event, lane: str | None) -> Event:
    """Return the event for a client that named the request's lane, or None."""
    return event if lane is None else replace(event, stream_id=lane)
