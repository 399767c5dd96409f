"""A timer that notices when a stream of events is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

KEEP_ALIVE: Final = 15.0
"""Maximum seconds without an event, so that clients and proxies do not drop a silent stream. Codex waits 300 s."""


class SilenceTimer:
    """Calls `emit` after each `seconds` in which `reset` was not called, from `start` to `stop`."""

    def __init__(self, seconds: float, emit: Callable[[], object]) -> None:
        """The timer does not run yet."""
        self._seconds = seconds
        self._emit = emit
        self._handle: asyncio.TimerHandle | None = None
        self._last = 0.0
        """When the last event was emitted, in seconds of the event loop's clock."""

    def start(self) -> None:
        """Start; no effect while the timer runs."""
        if self._handle is None:
            self.reset()
            self._wait()

    def reset(self) -> None:
        """Record that an event was emitted now. It costs no new timer, since it is called for every token."""
        self._last = asyncio.get_running_loop().time()

    def stop(self) -> None:
        """Stop for good, or until the next `start`."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _wait(self) -> None:
        self._handle = asyncio.get_running_loop().call_at(self._last + self._seconds, self._check)

    def _check(self) -> None:
        if asyncio.get_running_loop().time() - self._last >= self._seconds:
            self.reset()
            self._emit()
        if self._handle is not None:  # `emit` has not stopped the timer
            self._wait()
