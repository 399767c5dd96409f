"""Prometheus metrics of the cache: every call of a store, by the gateway and by its engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache import Operation
from engine import StoreUsed

LABELS: Final = ("backend", "operation", "outcome")
DOWN_SECONDS: Final = 30.0
"""Seconds for which an engine's report that the store is unavailable counts. The gateway checks more often."""
OUTCOMES: Final = {
    "get": ("hit", "partial", "miss", "error", "timeout", "skipped"),
    "open": ("corrupt",),
    "put": ("ok", "error", "timeout", "full", "skipped"),
}
"""Outcomes by operation that dashboards and alerts use. They are exported as 0 from the start."""
BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class StoreMetrics:
    """The metrics of a gateway's stores."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        """Create the metrics in `registry`; `clock` returns seconds."""
        self._operations = Counter(
            "samovar_store_operations",
            "Calls of the store; outcome: ok, hit, partial, miss, corrupt, error, timeout, full, or skipped (not "
            "tried, because the store is unavailable)",
            LABELS,
            registry=registry,
        )
        self._seconds = Histogram(
            "samovar_store_operation_seconds",
            "Duration of a call of the store, in seconds, without skipped calls",
            LABELS,
            buckets=BUCKETS,
            registry=registry,
        )
        self._bytes = Counter(
            "samovar_store_bytes", "Bytes of values read from and written to the store", LABELS, registry=registry
        )
        self._clock = clock
        self._down_until = 0.0
        """Until when an engine's report of an unavailable store counts, unless an engine reports that it is up.

        The time is limited because idle engines do not call the store.
        """
        self._up = Gauge(
            "samovar_store_up", "1 while the store accepts reads and writes, else 0", ["backend"], registry=registry
        )

    def observe(self, operation: Operation) -> None:
        """Count one call."""
        labels = (operation.backend, operation.operation, operation.outcome)
        self._operations.labels(*labels).inc()
        if operation.outcome != "skipped":
            self._seconds.labels(*labels).observe(operation.seconds)
        if operation.bytes:
            self._bytes.labels(*labels).inc(operation.bytes)

    def observe_engine(self, used: StoreUsed) -> None:
        """Count the calls that an engine reported."""
        for operation in used.operations:
            self.observe(operation)
        self._down_until = 0.0 if used.up else self._clock() + DOWN_SECONDS

    def watch(self, backend: str, up: Callable[[], bool]) -> None:
        """Export whether the store is up for the gateway and its engines, evaluated at each scrape."""
        for operation, outcomes in OUTCOMES.items():
            for outcome in outcomes:
                self._operations.labels(backend, operation, outcome)
        self._up.labels(backend).set_function(lambda: float(up() and self._clock() >= self._down_until))
