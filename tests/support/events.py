"""Events of the protocol as the dictionaries that clients receive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from openai.types.responses.responses_server_event import ResponsesServerEvent
from pydantic import TypeAdapter

from gateway.protocol.events import Event
from gateway.protocol.response_events import Ending

OPENAI: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
"""Every event of the official client's WebSocket mode."""


def check_types(event: dict[str, Any]) -> None:
    """Check strictly that an event has the types of the official client, which then loses and converts nothing."""
    parsed = OPENAI.validate_json(msgspec.json.encode(event), strict=True)
    assert parsed.model_dump(mode="json", exclude_unset=True, by_alias=True) == event


def plain(event: Event) -> dict[str, Any]:
    """The event as a client decodes it."""
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    return decoded


def numbered(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The events as a client decodes them, numbered as by the log."""
    return [{**plain(event), "sequence_number": number} for number, event in enumerate(events)]


def flat(ending: Ending) -> list[Event]:
    """The last events of a response as one list."""
    closing, last = ending
    return [*closing, last]
