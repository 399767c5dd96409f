"""The clock by which stored conversations expire: it counts observed time and ignores jumps of the system clock.

A board without a clock battery, a restored virtual machine or a wrong NTP server can move the system clock by years.
While a process runs, its monotonic clock counts. Between two processes, the difference of two readings of the system
clock counts if it is plausible; an implausible difference counts as zero, so that it causes no deletion.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

DAY: Final = 86_400.0
"""Seconds of a day."""


class Reading(NamedTuple):
    """Both clocks at one moment, in seconds since the epoch."""

    wall: float
    elapsed: float


def monotonic() -> float:
    """Return seconds of a clock that cannot be set and that keeps counting while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def plausible_gap(ttl: float) -> float:
    """Return the longest plausible pause between two processes, in seconds, for records that expire after `ttl`.

    Half of `ttl`, so that one wrong reading cannot expire records in use; at least a day, for machines that are off
    overnight.
    """
    return max(DAY, ttl / 2)


class ElapsedClock:
    """Observed time in seconds since the epoch."""

    def __init__(
        self,
        last: Reading | None,
        *,
        longest: float,
        wall: Callable[[], float] | None = None,
        steady: Callable[[], float] = monotonic,
    ) -> None:
        """Continue from `last`; a difference of more than `longest` seconds, or a negative one, counts as zero.

        `wall` is the system clock, `steady` a clock that cannot be set.
        """
        self._wall = wall or time.time
        self._steady = steady
        now = self._wall()
        last = last or Reading(now, now)
        gap = now - last.wall
        self.jump = gap if gap > longest else 0.0
        """Seconds from `last` to the system clock if that is implausibly long; else 0."""
        self._origin = last.elapsed + (gap if 0 <= gap <= longest else 0.0) - steady()

    def __call__(self) -> float:
        """Return the observed time."""
        return self._origin + self._steady()

    def read(self) -> Reading:
        """Return the current reading of both clocks, from which the next process continues."""
        return Reading(self._wall(), self())
