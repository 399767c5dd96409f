"""The sending side of a WebSocket, whose peer may read slowly or have disconnected."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

SEND_SECONDS: Final = 30.0
"""Seconds without progress after which a client counts as disconnected."""


class Sender:
    """Sends frames over an accepted socket."""

    def __init__(self, socket: WebSocket) -> None:
        """`socket` must be accepted."""
        self._socket = socket

    async def send(self, data: bytes) -> None:
        """Send a text frame when the peer has read enough of the earlier ones. Raises ConnectionError."""
        with _as_connection_error():
            async with asyncio.timeout(SEND_SECONDS):
                await self._socket.send_text(data.decode())

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame. Raises ConnectionError."""
        with _as_connection_error():
            async with asyncio.timeout(SEND_SECONDS):
                await self._socket.close(code, reason)


@contextmanager
def _as_connection_error() -> Iterator[None]:
    """Raise ConnectionError for every exception that means that the socket is closed or stalled."""
    try:
        yield
    except (TimeoutError, WebSocketDisconnect, RuntimeError) as error:
        # starlette and uvicorn raise RuntimeError for a socket that is already closed.
        raise ConnectionError from error
