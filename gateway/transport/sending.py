"""The sending side of a WebSocket, whose peer may read slowly, or be gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

SEND_SECONDS: Final = 30.0
"""A client that takes nothing for so long is gone."""


class Sender:
    """Sends frames over an accepted socket."""

    def __init__(self, socket: WebSocket) -> None:
        """`socket` is accepted already."""
        self._socket = socket

    async def send(self, data: bytes) -> None:
        """Send a text frame, once the peer has read enough of what was sent before. Raises ConnectionError."""
        with _gone():
            async with asyncio.timeout(SEND_SECONDS):
                await self._socket.send_text(data.decode())

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame. Raises ConnectionError."""
        with _gone():
            async with asyncio.timeout(SEND_SECONDS):
                await self._socket.close(code, reason)


@contextmanager
def _gone() -> Iterator[None]:
    """Raise ConnectionError for all that tells that a socket is closed, or might as well be."""
    try:
        yield
    except (TimeoutError, WebSocketDisconnect, RuntimeError) as error:
        # RuntimeError is what starlette and uvicorn say about a socket that is closed already.
        raise ConnectionError from error
