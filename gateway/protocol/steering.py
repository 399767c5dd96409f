"""Steering: a user's word to a response that runs, said to the model in a successor as soon as the response has ended.

The response ends at once, between two tokens, as `incomplete` for the reason `steered`; when its last token was drawn
already, it completes. What waits for the results of tool calls is put before the input of the request that brings them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.protocol.events import Event
from gateway.protocol.requests import InputMessage, InputText, ResponseCreate

PENDING: Final = 16
"""Words that may wait for one response."""
PARENTS: Final = 64
"""Responses of one connection for which words may wait."""
TEXT: Final = 1 << 20
"""Characters of all words that wait on one connection."""


class UserMessage(msgspec.Struct, frozen=True, tag="message", forbid_unknown_fields=True):
    """What a user says."""

    role: Literal["user"]
    content: str | Annotated[list[InputText], Meta(min_length=1)]


class ResponseSteer(msgspec.Struct, frozen=True, kw_only=True, tag="response.steer", forbid_unknown_fields=True):
    """A word to the response `previous_response_id`, which runs."""

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
        """Characters of its input."""
        return sum(len(message.text) for message in self.messages)


@dataclass(frozen=True)
class Steer:
    """A word that was accepted; `id` is a `steer_` id."""

    id: str
    message: ResponseSteer


class SteerError(Exception):
    """It cannot be said; `code` is one of OpenAI's for steering."""

    def __init__(self, code: str, message: str) -> None:
        """`message` is for people."""
        super().__init__(message)
        self.code = code


class Steering:
    """What waits to be said to the responses of one connection."""

    def __init__(self) -> None:
        """Nothing waits."""
        self._waiting: dict[str, list[Steer]] = {}

    def add(self, steer: Steer) -> None:
        """Let one more wait. Raises SteerError."""
        parent = steer.message.previous_response_id
        waiting = self._waiting.get(parent, [])
        if len(waiting) >= PENDING or (not waiting and len(self._waiting) >= PARENTS):
            raise SteerError("too_many_pending_steers", f"{PENDING} words wait for this response already")
        length = steer.message.length + sum(each.message.length for words in self._waiting.values() for each in words)
        if length > TEXT:
            raise SteerError("too_many_pending_steers", f"the words that wait would have more than {TEXT} characters")
        self._waiting[parent] = [*waiting, steer]

    def waiting(self, parent: str) -> list[Steer]:
        """What waits for a response, in the order of arrival."""
        return self._waiting.get(parent, [])

    def take(self, parent: str | None) -> list[Steer]:
        """The same, and it waits no longer."""
        return self._waiting.pop(parent or "", [])


def steered(request: ResponseCreate, steers: Sequence[Steer]) -> ResponseCreate:
    """The request, with what was steered said first."""
    messages = [message for steer in steers for message in steer.message.messages]
    own = [InputMessage("user", request.input)] if isinstance(request.input, str) else list(request.input or ())
    return msgspec.structs.replace(request, input=[*messages, *own])


def successor(request: ResponseCreate, parent: str, steers: Sequence[Steer]) -> ResponseCreate:
    """What follows `parent`, the answer to `request`, with all its settings."""
    return steered(msgspec.structs.replace(request, input=None, previous_response_id=parent), steers)


def required_input(response: dict[str, Any]) -> list[dict[str, str]]:
    """Stubs of the tool results without which nothing can be said after this response."""
    return [
        {"type": "function_call_output", "call_id": item["call_id"], "name": item["name"]}
        for item in response["output"]
        if item["type"] == "function_call"
    ]


def accepted(steer: Steer) -> Event:
    """It waits."""
    return {"type": "response.steer.accepted", "steer": _named(steer)}


def pending(steer: Steer, required: list[dict[str, str]], *, number: int) -> Event:
    """It waits on, for `required`."""
    return {
        "type": "response.steer.pending",
        "sequence_number": number,
        "steer": _named(steer),
        "reason": "waiting_for_required_input",
        "required_input": required,
    }


def failed(error: SteerError, raw: dict[str, Any], *, number: int, steer: str | None = None) -> Event:
    """It is not said; `raw` is the message as it came, which goes back, and `steer` the id that it had."""
    returned = {"previous_response_id": raw["previous_response_id"], "input": raw["input"]}
    return {
        "type": "response.steer.failed",
        "sequence_number": number,
        "error": {"type": "invalid_request_error", "code": error.code, "message": str(error)},
        "steer": returned if steer is None else {**returned, "id": steer},
    }


def _named(steer: Steer) -> dict[str, str]:
    return {"id": steer.id, "previous_response_id": steer.message.previous_response_id}
