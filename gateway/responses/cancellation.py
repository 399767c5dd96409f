"""The one state of a response that says whether, and why, it ends before its engine ends it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from contextlib import suppress


class Cause(enum.Enum):
    """Why a response ends early."""

    STOP_STRING = enum.auto()
    """The answer contains a stop string, so that it is complete."""
    CLIENT = enum.auto()
    """The client cancelled it, left, or reads too slowly."""
    STEERING = enum.auto()
    """The client steered it, and a successor answers."""
    SHUTDOWN = enum.auto()
    """The gateway stops."""


class Cancellation:
    """Set once, with a cause, by whatever ends a response; read by all that works for the response."""

    def __init__(self) -> None:
        """Start without a cause."""
        self.cause: Cause | None = None
        self.explanation: str | None = None
        """The cause in words for the client, if it needs any."""
        self._event = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def reason(self) -> str:
        """The API's `incomplete_details.reason`."""
        return "steered" if self.cause is Cause.STEERING else "cancelled"

    def cancel(self, cause: Cause, explanation: str | None = None) -> None:
        """Set the cause, and run the callbacks. The first cause counts: a second call does nothing."""
        if self.cause is None:
            self.cause, self.explanation = cause, explanation
            self._event.set()
            for callback in self._callbacks:
                callback()

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the cause is set."""
        self._callbacks.append(callback)

    async def wait(self, seconds: float) -> None:
        """Return when the cause is set, after `seconds` at the latest."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
