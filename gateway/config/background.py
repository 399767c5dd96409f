"""What runs beside requests for as long as the gateway does, and goes on whatever goes wrong in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

AGAIN: Final = 1.0
"""Seconds until work that failed begins anew."""


async def keep_up(name: str, keep: Callable[[], Awaitable[None]]) -> None:
    """Run `keep`, which has no end of its own, until cancelled; what it raises is logged, and it begins anew."""
    while True:
        try:
            await keep()
        except Exception as error:  # noqa: BLE001 - unheard, it would leave hung engines and full stores to themselves
            structlog.get_logger().error("background work failed", work=name, reason=repr(error))
        await asyncio.sleep(AGAIN)
