"""Background tasks, which run as long as the gateway and are restarted after an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

RESTART_SECONDS: Final = 1.0
"""Seconds before a failed task is restarted."""


async def run_forever(name: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run the endless `task` until cancelled. Log any exception and restart the task."""
    while True:
        try:
            await task()
        except Exception as error:  # noqa: BLE001 - a dead task would leave hung engines and full stores unattended
            structlog.get_logger().error("background work failed", work=name, reason=repr(error))
        await asyncio.sleep(RESTART_SECONDS)
