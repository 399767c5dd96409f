"""What the parts of a start take."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stages:
    """A stopwatch that tells each part's seconds by its name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """The first part begins now."""
        self._clock = clock
        self._began = clock()
        self.seconds: dict[str, float] = {}
        """By `NAME_seconds`, as the log has them."""

    def done(self, name: str) -> None:
        """A part ended, and the next one begins."""
        now = self._clock()
        self.seconds[f"{name}_seconds"] = round(now - self._began, 3)
        self._began = now
