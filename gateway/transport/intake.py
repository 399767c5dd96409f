"""State that all connections, HTTP requests included, share for reading messages."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from gateway.auth.principal import ANONYMOUS, Principal
from gateway.protocol.lanes import Backlog

SMALL: Final = 1 << 16
"""Bytes up to which a message is decoded immediately, in at most 4 ms. All connections' larger ones take turns."""


class Intake:
    """Limits on received messages, shared by all connections of a gateway, HTTP requests included."""

    def __init__(self) -> None:
        """Start with no waiting message."""
        self.backlog = Backlog()
        """Bytes of messages that wait for their lanes."""
        self.decoding = asyncio.Lock()
        """Held while a large message is decoded, so that other connections are served between two of them."""


def owner(socket: WebSocket, principal: Principal) -> str:
    """Return the owner whose limit waiting messages count against: the user, or without keys the client's address.

    Without keys a client could open any number of connections, each a user.
    """
    if principal.tenant != ANONYMOUS or socket.client is None:
        return principal.user
    return socket.client.host


def intake_of(connection: HTTPConnection) -> Intake:
    """Return the intake of the gateway that has this connection or request."""
    intake: Intake = connection.app.state.intake
    return intake
