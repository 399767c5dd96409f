"""The progress of a long prompt, for clients that ask for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from gateway.protocol.events import Event
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.response_events import ResponseEvents

PROGRESS_EVERY: Final = 1.0
"""Minimum seconds between two events about the progress of one prompt."""


class PromptProgressReport:
    """Repeats `response.in_progress` while a prompt is computed, if the request has `return_progress`."""

    def __init__(
        self, request: ResponseCreate, total: int, events: ResponseEvents, publish: Callable[[Event], None]
    ) -> None:
        """Report on a prompt of `total` tokens by `events`, which are passed to `publish`."""
        self._is_wanted = bool(request.return_progress)
        self._total = total
        self._events = events
        self._publish = publish
        self._next_at = 0.0
        """Earliest time of the next event in monotonic seconds."""

    def update(self, processed: int) -> None:
        """Emit the event, unless the last one was less than PROGRESS_EVERY ago."""
        now = time.monotonic()
        if self._is_wanted and now >= self._next_at:
            self._next_at = now + PROGRESS_EVERY
            self._publish(self._events.prompt_progress(processed, self._total))
