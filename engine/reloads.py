"""When a model that could not be loaded is tried again: not in a loop, and not only when somebody asks.

Balancers send nobody to a gateway that says that it cannot load its model, so that nobody's request would try it. There
may have been no memory for it, or its file was broken and is mended.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from engine.modelfile import Mark, mark

LATER: Final = (60.0, 120.0, 300.0, 600.0)
"""Seconds after an engine's first, second, … failure until it tries though nobody asks and the file is the same."""


class Reloads:
    """What is known of an engine's failures to load one file, by the engine's name."""

    def __init__(self, model: Path) -> None:
        """Nothing has failed yet."""
        self._model = model
        self._failures: defaultdict[str, int] = defaultdict(int)
        self._ask_at: defaultdict[str, float] = defaultdict(float)
        """When a request may have it tried."""
        self._due_at: defaultdict[str, float] = defaultdict(float)
        """When it is tried in any case."""
        self._tried: Mark | None = None
        """The file's marks when one could not be loaded last; None when there was no file."""
        self._latest: Mark | None = None
        """Those at the last look."""

    def failed(self, name: str, *, pause: float) -> None:
        """It could not be loaded; requests are refused for `pause` seconds."""
        now = time.monotonic()
        self._ask_at[name] = now + pause
        self._due_at[name] = now + LATER[min(self._failures[name], len(LATER) - 1)]
        self._failures[name] += 1
        self._tried = self._look()

    def loaded(self, name: str) -> None:
        """It could be loaded."""
        self._failures.pop(name, None)

    def refuses(self, name: str) -> bool:
        """Whether a request must not have it tried now."""
        return time.monotonic() < self._ask_at[name]

    def due(self, names: Sequence[str]) -> list[str]:
        """Of these engines, which could not load it, those that are to try now; to be asked now and then.

        All of them when the file has changed, and changes no more: one that is being copied is left alone.
        """
        before, self._latest = self._latest, self._look()
        changed = self._latest == before != self._tried
        now = time.monotonic()
        due = [name for name in names if changed or now >= self._due_at[name]]
        for name in due:
            self._due_at[name] = math.inf  # until it has failed again
        if changed:
            self._tried = self._latest
            self._failures.clear()
        return due

    def _look(self) -> Mark | None:
        with suppress(OSError):
            return mark(self._model)
        return None
