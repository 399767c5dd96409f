"""Measures the stages of the gateway's start."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stages:
    """A stopwatch for consecutive named stages."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the first stage."""
        self._clock = clock
        self._began = clock()
        self.seconds: dict[str, float] = {}
        """Durations by `NAME_seconds`, the names in the log."""

    def done(self, name: str) -> None:
        """End the current stage, named `name`, and start the next."""
        now = self._clock()
        self.seconds[f"{name}_seconds"] = round(now - self._began, 3)
        self._began = now
