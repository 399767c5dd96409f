"""Work for which the gateway uses the time from its start to the first request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

Job = Callable[[], Awaitable[None]]

log = structlog.get_logger()


class IdleWork:
    """Runs jobs one after the other. The first request ends all of them, within one step of an engine."""

    def __init__(self) -> None:
        """Create the work without any job."""
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def start(self, jobs: Sequence[Job]) -> None:
        """Run `jobs` in the background, unless there has been a request."""
        if not self._over:
            self._task = asyncio.create_task(self._run(jobs))

    def interrupt(self) -> None:
        """End the work, because a request has arrived. Called for each request."""
        self._over = True
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """End the work and wait until it has ended."""
        self.interrupt()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, jobs: Sequence[Job]) -> None:
        try:
            for job in jobs:
                await job()
        except Exception as error:  # noqa: BLE001 - the gateway serves without this work, and requests report errors
            first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            log.warning("idle work failed", reason=str(first))
