"""A clock in a test's hands."""

from __future__ import annotations


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float) -> None:
        """Begin at `now`."""
        self.now = now

    def __call__(self) -> float:
        """Seconds, as they are."""
        return self.now
