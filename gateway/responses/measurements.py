"""The measurements of one response: its times, its metrics, and its line in the log."""

from __future__ import annotations

import time
from collections.abc import Iterable

import structlog

from gateway.observability.metrics import Metrics
from gateway.protocol.events import Usage

log = structlog.get_logger("responses")


class Measurements:
    """Measures one response from its arrival to its end."""

    def __init__(self, metrics: Metrics, *, response: str, tenant: str, route: str, arrived: float) -> None:
        """Measure from `arrived` on, in monotonic seconds. The other arguments are for the log."""
        self._metrics = metrics
        self._response = response
        self._tenant = tenant
        self._route = route
        self._arrived = arrived
        self._queued: float | None = None
        """Seconds in the queue, once the request has an engine."""
        self._first: float | None = None
        """Seconds from arrival to the first delta."""

    @property
    def _seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self._arrived

    def placed(self) -> None:
        """Record that the request has an engine."""
        self._queued = self._seconds
        self._metrics.queue.observe(self._queued)

    def emitted(self, cache: str) -> None:
        """Record a delta. `cache` says how much of the prompt came from caches."""
        if self._first is None:
            self._first = self._seconds
            self._metrics.ttft.labels(cache).observe(self._first)

    def computed(self, usage: Usage, *, fetched: int) -> None:
        """Count the prompt's tokens, of which `fetched` came from the store."""
        self._metrics.prompt_tokens.labels("store").inc(fetched)
        self._metrics.prompt_tokens.labels("engine").inc(usage.cached - fetched)
        self._metrics.prompt_tokens.labels("computed").inc(usage.input - usage.cached)

    def ended(self, status: str, code: str, usage: Usage, engines: Iterable[str]) -> None:
        """Count the end of the response, and log its ids, times and counts, never its content."""
        self._metrics.ended(self._route, status, code, seconds=self._seconds)
        log.info(
            "response",
            response_id=self._response,
            tenant=self._tenant,
            route=self._route,
            status=status,
            code=code or None,
            queue_seconds=_rounded(self._queued),
            first_token_seconds=_rounded(self._first),
            seconds=_rounded(self._seconds),
            prompt_tokens=usage.input,
            cached_tokens=usage.cached,
            generated_tokens=usage.output,
            engines=list(dict.fromkeys(engines)),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
