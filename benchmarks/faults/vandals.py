"""Clients that do not behave: they leave without a word, do not read, or send more than anybody could answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import msgspec
from websockets.asyncio.client import connect

from benchmarks.faults.scene import Scene
from benchmarks.faults.talker import LOST

LONG: Final = 400
"""Tokens that they ask for."""
STALL_SECONDS: Final = 1.0
FLOOD: Final = 50
"""Messages that one sends at once; every second one is none."""


async def vanish(scene: Scene, count: int) -> None:
    """Ask, hear a little, and be gone without a close frame."""

    async def one(seconds: float) -> None:
        with suppress(*LOST):
            async with _socket(scene) as socket:
                await socket.send(_request())
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        while True:
                            await socket.recv()
                socket.transport.abort()

    stays = [scene.mischief.uniform(0.0, 0.5) for _ in range(count)]  # before any of them meets the others
    await asyncio.gather(*map(one, stays))


async def stall(scene: Scene, count: int) -> None:
    """Ask on many lanes, and read nothing."""
    with suppress(*LOST):
        async with _socket(scene) as socket:
            socket.transport.pause_reading()
            for number in range(count):
                await socket.send(_request(stream_id=str(number)))
            await asyncio.sleep(STALL_SECONDS)
            socket.transport.abort()


async def flood(scene: Scene, count: int) -> None:
    """Send requests and what is none as fast as it goes, then leave properly."""

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
    """A connection. That it cannot be had, or breaks, is no vandal's concern."""
    return connect(scene.house.address, open_timeout=5, ping_interval=None, close_timeout=2)
