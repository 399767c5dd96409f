"""Misbehaving clients: they vanish without a close frame, do not read, or flood the server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import msgspec
from websockets.asyncio.client import connect

from benchmarks.faults.scene import Scene
from benchmarks.faults.talker import LOST

LONG: Final = 400
"""Tokens that they request."""
STALL_SECONDS: Final = 1.0
FLOOD: Final = 50
"""Messages that one client sends at once; every second one is invalid."""


async def vanish(scene: Scene, count: int) -> None:
    """Send a request, read for a moment, and vanish without a close frame."""

    async def one(seconds: float) -> None:
        with suppress(*LOST):
            async with _socket(scene) as socket:
                await socket.send(_request())
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        while True:
                            await socket.recv()
                socket.transport.abort()

    stays = [scene.mischief.uniform(0.0, 0.5) for _ in range(count)]  # drawn before the clients run concurrently
    await asyncio.gather(*map(one, stays))


async def stall(scene: Scene, count: int) -> None:
    """Send requests on many lanes, and read nothing."""
    with suppress(*LOST):
        async with _socket(scene) as socket:
            socket.transport.pause_reading()
            for number in range(count):
                await socket.send(_request(stream_id=str(number)))
            await asyncio.sleep(STALL_SECONDS)
            socket.transport.abort()


async def flood(scene: Scene, count: int) -> None:
    """Send requests and invalid messages as fast as possible, then close properly."""

    async def one() -> None:
        with suppress(*LOST):
            async with _socket(scene) as socket:
                for number in range(FLOOD):
                    await socket.send("{" if number % 2 else _request())

    await asyncio.gather(*(one() for _ in range(max(1, count // 4))))


def _request(**fields: str) -> str:
    message = {"type": "response.create", "input": "x", "max_output_tokens": LONG, **fields}
    return msgspec.json.encode(message).decode()


def _socket(scene: Scene) -> connect:
    """Return a connection; its failures do not concern a vandal."""
    return connect(scene.gateway.address, open_timeout=5, ping_interval=None, close_timeout=2)
