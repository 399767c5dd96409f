"""Metrics of the cache: calls with their outcomes, and whether the store is up."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from cache import Operation
from engine import StoreUsed
from gateway.observability.store_metrics import DOWN_SECONDS, StoreMetrics

HIT = Operation("redis", "get", "hit", 0.004, 1000)
SKIPPED = Operation("redis", "get", "skipped", 0.0, 0)


def test_calls_of_the_gateway_and_of_engines_are_counted_together() -> None:
    registry = CollectorRegistry()
    metrics = StoreMetrics(registry)
    metrics.observe(HIT)
    metrics.observe_engine(StoreUsed([HIT, SKIPPED], up=True))
    hit, skipped = ({"backend": "redis", "operation": "get", "outcome": outcome} for outcome in ("hit", "skipped"))
    assert registry.get_sample_value("samovar_store_operations_total", hit) == 2
    assert registry.get_sample_value("samovar_store_bytes_total", hit) == 2000
    assert registry.get_sample_value("samovar_store_operation_seconds_count", hit) == 2
    assert registry.get_sample_value("samovar_store_operations_total", skipped) == 1
    assert registry.get_sample_value("samovar_store_operation_seconds_count", skipped) is None


def test_the_store_is_up_when_the_gateway_and_its_engines_find_it_so() -> None:
    registry, now, reachable = CollectorRegistry(), [0.0], [True]
    metrics = StoreMetrics(registry, clock=lambda: now[0])
    metrics.watch("redis", lambda: reachable[0])

    def up() -> float | None:
        return registry.get_sample_value("samovar_store_up", {"backend": "redis"})

    assert up() == 1
    metrics.observe_engine(StoreUsed([SKIPPED], up=False))
    assert up() == 0
    metrics.observe_engine(StoreUsed([HIT], up=True))
    assert up() == 1
    metrics.observe_engine(StoreUsed([SKIPPED], up=False))
    now[0] += DOWN_SECONDS  # an idle engine would not report that the store is available again
    assert up() == 1
    reachable[0] = False
    assert up() == 0
