"""How many conversations go on: those that had a turn within the last minutes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

WITHIN: Final = 300.0
"""Seconds after its last turn until a conversation counts as left alone."""
MOST: Final = 100_000
"""Conversations that are counted; the oldest go."""


class Activity:
    """Conversations by their latest response: a turn that continues one takes its place."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._latest: OrderedDict[str, float] = OrderedDict()

    def turn(self, previous: str | None, response: str) -> None:
        """A turn begins."""
        if previous is not None:
            self._latest.pop(previous, None)
        self._latest[response] = self._clock()
        if len(self._latest) > MOST:
            self._latest.popitem(last=False)

    def __len__(self) -> int:
        """Conversations that go on."""
        since = self._clock() - WITHIN
        while self._latest and next(iter(self._latest.values())) < since:
            self._latest.popitem(last=False)
        return len(self._latest)
