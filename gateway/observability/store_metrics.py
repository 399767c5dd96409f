"""What Prometheus is told of the cache: every call of a store, in the gateway and in its engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache import Operation
from engine import StoreUsed

LABELS: Final = ("backend", "operation", "outcome")
DOWN_SECONDS: Final = 30.0
"""How long an engine's word that the store is away counts; the gateway itself looks more often than that."""
OUTCOMES: Final = {
    "get": ("hit", "partial", "miss", "error", "timeout", "skipped"),
    "open": ("corrupt",),
    "put": ("ok", "error", "timeout", "full", "skipped"),
}
"""Of the operations that boards and alerts look at; they are counted from 0."""
BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class StoreMetrics:
    """The metrics of a gateway's stores, in its registry."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin at zero."""
        self._operations = Counter(
            "samovar_store_operations",
            "Calls of the store; outcome: ok, hit, partial, miss, corrupt, error, timeout, full, skipped (it is away)",
            LABELS,
            registry=registry,
        )
        self._seconds = Histogram(
            "samovar_store_operation_seconds",
            "Time of a call of the store that was tried, in seconds",
            LABELS,
            buckets=BUCKETS,
            registry=registry,
        )
        self._bytes = Counter(
            "samovar_store_bytes", "Bytes of the values that the store gave or took", LABELS, registry=registry
        )
        self._clock = clock
        self._down_until = 0.0
        """An engine found it away: that counts until one finds it well, or for a while, as idle engines do not look."""
        self._up = Gauge(
            "samovar_store_up", "1 while the store gives and takes, else 0", ["backend"], registry=registry
        )

    def observe(self, operation: Operation) -> None:
        """Count one call."""
        labels = (operation.backend, operation.operation, operation.outcome)
        self._operations.labels(*labels).inc()
        if operation.outcome != "skipped":
            self._seconds.labels(*labels).observe(operation.seconds)
        if operation.bytes:
            self._bytes.labels(*labels).inc(operation.bytes)

    def told(self, used: StoreUsed) -> None:
        """Count what an engine did with it."""
        for operation in used.operations:
            self.observe(operation)
        self._down_until = 0.0 if used.up else self._clock() + DOWN_SECONDS

    def watch(self, backend: str, up: Callable[[], bool]) -> None:
        """Tell whether the store is up, for the gateway and its engines, whenever Prometheus asks."""
        for operation, outcomes in OUTCOMES.items():
            for outcome in outcomes:
                self._operations.labels(backend, operation, outcome)
        self._up.labels(backend).set_function(lambda: float(up() and self._clock() >= self._down_until))
