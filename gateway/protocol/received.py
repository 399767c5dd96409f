"""Received messages, whose type and address are read before the rest is decoded."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gateway.errors import InvalidJsonError, InvalidRequestError
from gateway.protocol.requests import LANE, MAX_ID, check_size, decode, parse
from gateway.protocol.unicode_repair import repaired


class _Named(msgspec.Struct):
    """The fields with a message's type and address, undecoded."""

    type: msgspec.Raw = msgspec.Raw(b"null")
    stream_id: msgspec.Raw = msgspec.Raw(b"null")
    response_id: msgspec.Raw = msgspec.Raw(b"null")


class Received(NamedTuple):
    """A received message: valid JSON, of which only type and address are decoded."""

    data: bytes
    """The message, repaired."""
    kind: str | None
    """The message's type."""
    address: dict[str, str]
    """The lane and response that the message names, valid or not, for use in error events."""
    has_lane: bool
    """Whether `stream_id` is valid or absent."""


def receive(data: bytes) -> Received:
    """Check that a frame is a JSON object, and decode its type and address only.

    Raises MessageTooLargeError, InvalidJsonError or InvalidRequestError.
    """
    check_size(len(data))
    data = repaired(data)
    try:
        named = msgspec.json.decode(data, type=_Named)
    except msgspec.ValidationError as error:
        decode(data)  # raises InvalidJsonError if the data is not JSON at all
        raise InvalidRequestError("a message must be a JSON object") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidJsonError(f"the message is not valid JSON: {error}") from error
    kind, lane, response = (_short_text(raw) for raw in (named.type, named.stream_id, named.response_id))
    address = {"stream_id": lane, "response_id": response}
    has_lane = bool(LANE.match(lane)) if lane is not None else bytes(named.stream_id) == b"null"
    return Received(data, kind, {name: text for name, text in address.items() if text is not None}, has_lane)


def _short_text(raw: msgspec.Raw) -> str | None:
    """Decode a string of up to MAX_ID characters; return None for anything else."""
    data = bytes(raw)
    if len(data) > 6 * MAX_ID + 2:  # an escaped character takes six bytes
        return None
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return value if isinstance(value, str) and len(value) <= MAX_ID else None


def lane_of(received: Received) -> str | None:
    """Return the lane that a message names. Raises ApiError for an invalid name."""
    if not received.has_lane:
        parse(received.data)
        raise InvalidRequestError("stream_id: this is not a valid lane name", param="stream_id")
    return received.address.get("stream_id")
