"""Messages as they are received: what they say of themselves is read before any object is made of the rest."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gateway.errors import InvalidJsonError, InvalidRequestError
from gateway.protocol.requests import LANE, MAX_ID, check_size, decode, parse


class _Named(msgspec.Struct):
    """The fields by which a message says what it is and whom it concerns, not looked into."""

    type: msgspec.Raw = msgspec.Raw(b"null")
    stream_id: msgspec.Raw = msgspec.Raw(b"null")
    response_id: msgspec.Raw = msgspec.Raw(b"null")


class Received(NamedTuple):
    """A message as it was received: valid JSON, of which only the address is decoded."""

    data: bytes
    kind: str | None
    """Its type."""
    address: dict[str, str]
    """The lane and the response that it names, valid or not: an error about it has to name them too."""
    has_lane: bool
    """Whether its `stream_id` is one, or it has none."""


def receive(data: bytes) -> Received:
    """Check that a frame is a JSON object, and read its address: no objects are made of the rest.

    Raises MessageTooLargeError, InvalidJsonError or InvalidRequestError.
    """
    check_size(len(data))
    try:
        named = msgspec.json.decode(data, type=_Named)
    except msgspec.ValidationError as error:
        decode(data)  # raises if what begins as something else than an object is no JSON at all
        raise InvalidRequestError("a message is a JSON object") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidJsonError(f"the message is not valid JSON: {error}") from error
    kind, lane, response = (_short_text(raw) for raw in (named.type, named.stream_id, named.response_id))
    address = {"stream_id": lane, "response_id": response}
    has_lane = bool(LANE.match(lane)) if lane is not None else bytes(named.stream_id) == b"null"
    return Received(data, kind, {name: text for name, text in address.items() if text is not None}, has_lane)


def _short_text(raw: msgspec.Raw) -> str | None:
    """A text of up to 256 characters; None for anything else."""
    data = bytes(raw)
    if len(data) > 6 * MAX_ID + 2:  # an escape makes six bytes of one character
        return None
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return value if isinstance(value, str) and len(value) <= MAX_ID else None


def lane_of(received: Received) -> str | None:
    """The lane that a message names. Raises ApiError for a name that is none."""
    if not received.has_lane:
        parse(received.data)
        raise InvalidRequestError("stream_id: it is no name of a lane", param="stream_id")
    return received.address.get("stream_id")
