"""What all WebSocket connections share of reading messages."""

from __future__ import annotations

import asyncio

from starlette.websockets import WebSocket

from gateway.auth.principal import ANONYMOUS, Principal
from gateway.protocol.lanes import Backlog


class Intake:
    """One for all connections of a gateway."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.backlog = Backlog()
        """Messages that wait for their lanes."""
        self.decoding = asyncio.Lock()
        """Held while a large message is decoded: between two of them the event loop serves everybody else."""


def owner(socket: WebSocket, principal: Principal) -> str:
    """For whom waiting messages count: the user, or without keys the address, of which connections cost nothing."""
    if principal.tenant != ANONYMOUS or socket.client is None:
        return principal.user
    return socket.client.host
