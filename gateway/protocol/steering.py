"""Steering: user input for a running response, which a successor response passes to the model.

The running response ends immediately, between two tokens, as `incomplete` with reason `steered`; if its last token is
already sampled, it completes. Steers that wait for tool results precede the input of the request with these results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.protocol.events import (
    NamedSteer,
    RequiredOutput,
    ReturnedSteer,
    SteerAccepted,
    SteerFailed,
    SteerFailure,
    SteerPending,
)
from gateway.protocol.requests import InputMessage, InputText, ResponseCreate

PENDING: Final = 16
"""Maximum steers that wait for one response."""
PARENTS: Final = 64
"""Maximum responses of one connection with waiting steers."""
TEXT: Final = 1 << 20
"""Maximum characters of all waiting steers of one connection."""


class UserMessage(msgspec.Struct, frozen=True, tag="message", forbid_unknown_fields=True):
    """A user's message."""

    role: Literal["user"]
    content: str | Annotated[list[InputText], Meta(min_length=1)]


class ResponseSteer(msgspec.Struct, frozen=True, kw_only=True, tag="response.steer", forbid_unknown_fields=True):
    """User input for the running response `previous_response_id`."""

    previous_response_id: str
    input: str | Annotated[list[UserMessage], Meta(min_length=1, max_length=64)]

    @property
    def messages(self) -> list[InputMessage]:
        """The input as messages."""
        if isinstance(self.input, str):
            return [InputMessage("user", self.input)]
        return [
            InputMessage("user", message.content if isinstance(message.content, str) else list(message.content))
            for message in self.input
        ]

    @property
    def length(self) -> int:
        """Number of characters of the input."""
        return sum(len(message.text) for message in self.messages)


@dataclass(frozen=True)
class Steer:
    """An accepted steer; `id` is a `steer_` id."""

    id: str
    message: ResponseSteer


class SteerError(Exception):
    """A steer is rejected or has failed; `code` is one of OpenAI's codes for steering."""

    def __init__(self, code: str, message: str) -> None:
        """`message` says what is wrong."""
        super().__init__(message)
        self.code = code


class Steering:
    """The waiting steers of one connection."""

    def __init__(self) -> None:
        """Start without a waiting steer."""
        self._waiting: dict[str, list[Steer]] = {}

    def add(self, steer: Steer) -> None:
        """Add a steer. Raises SteerError if a limit is exceeded."""
        parent = steer.message.previous_response_id
        waiting = self._waiting.get(parent, [])
        if len(waiting) >= PENDING or (not waiting and len(self._waiting) >= PARENTS):
            text = f"at most {PENDING} steers may wait for a response, and for at most {PARENTS} responses"
            raise SteerError("too_many_pending_steers", text)
        length = steer.message.length + sum(each.message.length for steers in self._waiting.values() for each in steers)
        if length > TEXT:
            raise SteerError("too_many_pending_steers", f"the waiting steers would have more than {TEXT} characters")
        self._waiting[parent] = [*waiting, steer]

    def waiting(self, parent: str) -> list[Steer]:
        """Return the steers that wait for a response, in order of arrival."""
        return self._waiting.get(parent, [])

    def take_steers(self, parent: str | None) -> list[Steer]:
        """Remove and return the steers that wait for a response, in order of arrival."""
        return self._waiting.pop(parent or "", [])


def steered(request: ResponseCreate, steers: Sequence[Steer]) -> ResponseCreate:
    """Return the request with the steers' messages before its input."""
    messages = [message for steer in steers for message in steer.message.messages]
    own = [InputMessage("user", request.input)] if isinstance(request.input, str) else list(request.input or ())
    return msgspec.structs.replace(request, input=[*messages, *own])


def successor(request: ResponseCreate, parent: str, steers: Sequence[Steer]) -> ResponseCreate:
    """Return the request for the successor of `parent`, the response to `request`, with all its settings."""
    return steered(msgspec.structs.replace(request, input=None, previous_response_id=parent), steers)


def required_input(response: dict[str, Any]) -> list[RequiredOutput]:
    """Return the tool results that this response needs before any other input."""
    return [
        RequiredOutput(call_id=item["call_id"], name=item["name"])
        for item in response["output"]
        if item["type"] == "function_call"
    ]


def accepted(steer: Steer) -> SteerAccepted:
    """Return the event for an accepted steer."""
    return SteerAccepted(steer=_named(steer))


def pending(steer: Steer, required: list[RequiredOutput], *, number: int) -> SteerPending:
    """Return the event for a steer that waits for the tool results `required`."""
    return SteerPending(
        sequence_number=number, steer=_named(steer), reason="waiting_for_required_input", required_input=required
    )


def failed(error: SteerError, raw: dict[str, Any], *, number: int, steer: str | None = None) -> SteerFailed:
    """Return the event for a failed steer, with its message `raw`, and its id `steer` if it has one."""
    return SteerFailed(
        sequence_number=number,
        error=SteerFailure(code=error.code, message=str(error)),
        steer=ReturnedSteer(previous_response_id=raw["previous_response_id"], input=raw["input"], id=steer),
    )


def _named(steer: Steer) -> NamedSteer:
    return NamedSteer(id=steer.id, previous_response_id=steer.message.previous_response_id)
