"""The times at which one answer reached its stages."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Timings:
    """Times in monotonic seconds; None for stages that the answer has not reached.

    An answer that moves to another engine keeps its first times.
    """

    placed: float | None = None
    """When an engine was chosen."""
    started: float | None = None
    """When the engine began with the prompt: the model and all stored KV are loaded."""
    first: float | None = None
    """When the first token arrived, or the end of an answer without tokens."""
    last: float | None = None
    """When the latest token arrived."""

    def place(self) -> None:
        """Record that an engine was chosen."""
        self.placed = time.monotonic()

    def start(self) -> None:
        """Record that the engine began with the prompt."""
        if self.started is None:
            self.started = time.monotonic()

    def advance(self) -> None:
        """Record tokens, or the end of the answer."""
        self.last = time.monotonic()
        if self.first is None:
            self.first = self.last

    @property
    def load(self) -> float:
        """Seconds from the choice of the engine until it began with the prompt."""
        return _between(self.placed, self.started)

    @property
    def prompt(self) -> float:
        """Seconds from then to the first token."""
        return _between(self.started, self.first)

    @property
    def answer(self) -> float:
        """Seconds from the first token to the latest."""
        return _between(self.first, self.last)


def _between(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else end - start
