"""Counts active conversations: those with a turn in the last minutes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

WITHIN: Final = 300.0
"""Seconds after its last turn for which a conversation counts as active."""
MOST: Final = 100_000
"""Maximum conversations counted. The oldest are evicted."""


class Activity:
    """Active conversations by their latest response. A turn that continues a response replaces it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without conversations; `clock` returns seconds."""
        self._clock = clock
        self._latest: OrderedDict[str, float] = OrderedDict()

    def turn(self, previous: str | None, response: str) -> None:
        """Record the beginning of a turn."""
        if previous is not None:
            self._latest.pop(previous, None)
        self._latest[response] = self._clock()
        if len(self._latest) > MOST:
            self._latest.popitem(last=False)

    def __len__(self) -> int:
        """Return the number of active conversations."""
        since = self._clock() - WITHIN
        while self._latest and next(iter(self._latest.values())) < since:
            self._latest.popitem(last=False)
        return len(self._latest)
