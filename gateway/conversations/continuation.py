"""Requests that continue a conversation: the field `conversation`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.errors import InvalidRequestError
from gateway.protocol.requests import ResponseCreate, convert

ConversationId = Annotated[str, Meta(min_length=1, max_length=256)]
TurnKey = Annotated[str, Meta(max_length=64)]


class Target(msgspec.Struct, frozen=True):
    """The conversation to continue."""

    id: ConversationId
    after: str | UnsetType | None = UNSET
    """The response to continue, null for a new first turn; by default the conversation's head."""
    key: TurnKey = ""
    """The client's own name of the new turn."""


class _Field(msgspec.Struct, frozen=True):
    conversation: ConversationId | Target


class InConversation(ResponseCreate, frozen=True, kw_only=True):
    """A request whose turn belongs to a conversation."""

    conversation: Target


def take_target(raw: dict[str, Any]) -> Target | None:
    """Remove the field `conversation` from the decoded fields of a request, and return it.

    Raises InvalidRequestError.
    """
    value = raw.pop("conversation", None)
    if value is None:
        return None
    found = convert({"conversation": value}, _Field).conversation
    if raw.get("previous_response_id") is not None:
        raise InvalidRequestError(
            "conversation: it cannot be combined with `previous_response_id`; to continue another response than the "
            'last, send `"conversation": {"id": …, "after": RESPONSE}`',
            param="conversation",
        )
    if raw.get("store") is False:
        raise InvalidRequestError("store: a response of a conversation must be stored; leave it out", param="store")
    return Target(found) if isinstance(found, str) else found


def in_conversation(request: ResponseCreate, target: Target | None) -> ResponseCreate:
    """Return the request as one that continues `target`, if that is given."""
    if target is None:
        return request
    return InConversation(**msgspec.structs.asdict(request), conversation=target)
