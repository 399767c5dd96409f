"""Time by which stored conversations expire: seconds that were seen to pass, whatever the system clock says.

A board without a clock battery, a restored virtual machine or a wrong NTP server can move the system clock by years.
While a process runs, its monotonic clock counts. Between two processes the difference of two readings of the system
clock counts, if it is plausible; an implausible one counts as nothing, so that no conversation is deleted for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

DAY: Final = 86_400.0


class Reading(NamedTuple):
    """Both clocks at one moment, in seconds of the epoch."""

    wall: float
    elapsed: float


def monotonic() -> float:
    """Return seconds that no setting of the clock changes, and that include the time of a suspended machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def plausible_gap(ttl: float) -> float:
    """Return the longest pause between two processes, in seconds, that counts for records which expire after `ttl`.

    Half of `ttl`, so that one wrong reading cannot expire what was in use; at least a day, as machines rest overnight.
    """
    return max(DAY, ttl / 2)


class ElapsedClock:
    """Seconds of the epoch, as far as they were seen to pass."""

    def __init__(
        self,
        last: Reading | None,
        *,
        longest: float,
        wall: Callable[[], float] | None = None,
        steady: Callable[[], float] = monotonic,
    ) -> None:
        """Continue from `last`; a difference of more than `longest` seconds, or a negative one, counts as nothing.

        `wall` is the system clock, `steady` one that no setting of it changes.
        """
        self._wall = wall or time.time
        self._steady = steady
        now = self._wall()
        last = last or Reading(now, now)
        gap = now - last.wall
        self.jump = gap if gap > longest else 0.0
        """Seconds by which the system clock is implausibly past `last`; else 0."""
        self._origin = last.elapsed + (gap if 0 <= gap <= longest else 0.0) - steady()

    def __call__(self) -> float:
        """Return the time."""
        return self._origin + self._steady()

    def read(self) -> Reading:
        """Return both clocks, to continue from."""
        return Reading(self._wall(), self())
