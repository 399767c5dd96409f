"""Decides when to retry loading a model that could not be loaded.

Requests alone can't trigger the retry: load balancers send none to a gateway that reports that it can't load its model.
A retry can succeed, because memory may have been short or the file has been replaced since.
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

RETRY_DELAYS: Final = (60.0, 120.0, 300.0, 600.0)
"""Seconds from an engine's first, second, … failure to a retry without a request and with an unchanged file."""


class Reloads:
    """Tracks the failures of engines to load one model, by engine name."""

    def __init__(self, model: Path) -> None:
        """Start without failures."""
        self._model = model
        self._failures: defaultdict[str, int] = defaultdict(int)
        self._allowed_at: defaultdict[str, float] = defaultdict(float)
        """When a request may trigger a retry, in monotonic seconds."""
        self._due_at: defaultdict[str, float] = defaultdict(float)
        """When a retry happens without a request, in monotonic seconds."""
        self._tried: Mark | None = None
        """The marks of the file at the last failure; None if there was no file."""
        self._latest: Mark | None = None
        """The marks of the file at the last call of `due`."""

    def failed(self, name: str, *, pause: float) -> None:
        """Record that engine `name` could not load the model. Requests trigger no retry for `pause` seconds."""
        now = time.monotonic()
        self._allowed_at[name] = now + pause
        self._due_at[name] = now + RETRY_DELAYS[min(self._failures[name], len(RETRY_DELAYS) - 1)]
        self._failures[name] += 1
        self._tried = self._read_mark()

    def loaded(self, name: str) -> None:
        """Record that engine `name` has loaded the model."""
        self._failures.pop(name, None)

    def refuses(self, name: str) -> bool:
        """Whether a request must not trigger a retry now."""
        return time.monotonic() < self._allowed_at[name]

    def due(self, names: Sequence[str]) -> list[str]:
        """Return which of the failed engines `names` should retry now. The pool calls this in every maintenance round.

        All of them retry once the file has changed and two successive calls find it the same, so that a file that is
        being copied is left alone.
        """
        before, self._latest = self._latest, self._read_mark()
        changed = self._latest == before != self._tried
        now = time.monotonic()
        due = [name for name in names if changed or now >= self._due_at[name]]
        for name in due:
            self._due_at[name] = math.inf  # until the next failure
        if changed:
            self._tried = self._latest
            self._failures.clear()
        return due

    def _read_mark(self) -> Mark | None:
        with suppress(OSError):
            return mark(self._model)
        return None
