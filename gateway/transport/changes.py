"""What a WebSocket carries besides responses: changes of conversations, and the answers to pings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gateway.auth.principal import Principal
from gateway.conversations.continuation import in_conversation, take_target
from gateway.conversations.feed import Subscribed, Subscription
from gateway.protocol.events import Event, on_lane
from gateway.protocol.received import Received
from gateway.protocol.requests import MAX_ID, ClientMessage, ResponseCreate, convert, decode, parse, read
from gateway.responses.conversations import check_has_conversations
from gateway.responses.registry import Responses

PING: Final = "samovar.ping"
ANSWERED: Final = (PING, "conversation.subscribe")
"""Types of the messages that are about no response."""


class Ping(msgspec.Struct, frozen=True):
    """Ask for a `samovar.pong`, to find out whether the connection still works."""

    id: Annotated[str, Meta(max_length=MAX_ID)] | None = None


class Pong(Event, frozen=True, kw_only=True, tag="samovar.pong"):
    """The answer to `samovar.ping`."""

    id: str | None = None


class Changes:
    """One connection's subscription. Made when a client needs it, since idle connections are many."""

    def __init__(self, responses: Responses, principal: Principal, wake: Callable[[], None]) -> None:
        """Follow the conversations of `principal`; `wake` is called when there is something to send."""
        self._conversations = responses.services.conversations
        self._principal = principal
        self._wake = wake
        self._subscription: Subscription | None = None

    def answer(self, received: Received) -> Event:
        """Return the answer to a message whose type is in ANSWERED. Raises ApiError."""
        event: Event
        if received.kind == PING:
            event = Pong(id=convert(decode(received.data), Ping).id)
        else:
            self._subscribe()
            event = Subscribed()
        return on_lane(event, received.address.get("stream_id"))

    async def next(self) -> Event | None:
        """Return the next change; None if there is none, or no subscription."""
        if self._subscription is None:
            return None
        return await self._conversations.next_event(self._subscription)

    def close(self) -> None:
        """End the subscription."""
        if self._subscription is not None:
            self._conversations.feed.unsubscribe(self._subscription)

    def _subscribe(self) -> None:
        check_has_conversations(self._principal)
        if self._subscription is None:
            self._subscription = self._conversations.subscribe(self._principal.tenant, self._wake)


async def next_change(changes: Changes | None) -> Event | None:
    """Return the next change for a connection; None if there is none."""
    return None if changes is None else await changes.next()


def parse_message(received: Received, *, strict_fields: bool) -> ClientMessage:
    """Return a message about a response, which may belong to a conversation. Raises ApiError."""
    if received.kind != "response.create":
        return parse(received.data, strict_fields=strict_fields)
    raw = decode(received.data)
    target = take_target(raw)
    message = read(raw, strict_fields=strict_fields)
    return in_conversation(message, target) if isinstance(message, ResponseCreate) else message
