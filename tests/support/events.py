"""Events of the protocol as the dictionaries that clients receive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.protocol.events import Event
from gateway.protocol.response_events import Ending


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
