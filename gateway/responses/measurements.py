"""The measurements of one response: its times, its metrics, and its line in the log."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from gateway.observability.metrics import Metrics
from gateway.protocol.events import Usage

log = structlog.get_logger("responses")


@dataclass
class Measurements:
    """Measures one response from its arrival to its end."""

    metrics: Metrics
    response: str
    tenant: str
    route: str
    arrived: float
    """Time of the request's arrival in monotonic seconds."""
    queued: float | None = None
    """Seconds in the queue, once the request has an engine."""
    first: float | None = None
    """Seconds from arrival to the first delta."""

    @property
    def _seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.arrived

    def placed(self) -> None:
        """Record that the request has an engine."""
        self.queued = self._seconds
        self.metrics.queue.observe(self.queued)

    def emitted(self, cache: str) -> None:
        """Record a delta. `cache` says how much of the prompt came from caches."""
        if self.first is None:
            self.first = self._seconds
            self.metrics.ttft.labels(cache).observe(self.first)

    def computed(self, usage: Usage, *, fetched: int) -> None:
        """Count the prompt's tokens, of which `fetched` came from the store."""
        self.metrics.prompt_tokens.labels("store").inc(fetched)
        self.metrics.prompt_tokens.labels("engine").inc(usage.cached - fetched)
        self.metrics.prompt_tokens.labels("computed").inc(usage.input - usage.cached)

    def ended(self, status: str, code: str, usage: Usage, engines: Iterable[str]) -> None:
        """Count the end of the response, and log its ids, times and counts, never its content."""
        self.metrics.ended(self.route, status, code, seconds=self._seconds)
        log.info(
            "response",
            response_id=self.response,
            tenant=self.tenant,
            route=self.route,
            status=status,
            code=code or None,
            queue_seconds=_rounded(self.queued),
            first_token_seconds=_rounded(self.first),
            seconds=_rounded(self._seconds),
            prompt_tokens=usage.input,
            cached_tokens=usage.cached,
            generated_tokens=usage.output,
            engines=list(dict.fromkeys(engines)),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
