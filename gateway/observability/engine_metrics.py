"""Prometheus metrics of the engines, read from the pool at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from engine import EnginePool, State

Families = GaugeMetricFamily | CounterMetricFamily | UnknownMetricFamily

BY_ENGINE: Final = ("engine",)


class EngineMetrics(Collector):
    """The metrics of a pool and of the gateway's process. It has no state, so that it cannot contradict the pool."""

    def __init__(self, pool: EnginePool) -> None:
        """Collect metrics of `pool`."""
        self._pool = pool
        self._own = psutil.Process()

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics with their current values."""
        yield self._states()
        yield from self._gauges()
        yield from self._counters()
        yield GaugeMetricFamily(
            "samovar_gateway_resident_bytes",
            "Resident memory of the gateway process in bytes, without prompt workers",
            value=self._own.memory_info().rss,
        )

    def _states(self) -> Metric:
        family = GaugeMetricFamily(
            "samovar_engine_state",
            "1 for the current state of an engine (stopped, loading, idle, busy or failed), 0 for the other states",
            labels=("engine", "state"),
        )
        for engine in self._pool.engines:
            for state in State:
                family.add_metric((engine.name, state.value), float(engine.state is state))
        return family

    def _gauges(self) -> Iterable[Metric]:
        engines, usage = self._pool.engines, self._pool.usage
        yield _filled(
            GaugeMetricFamily("samovar_engine_threads", "Threads assigned to the engine", labels=BY_ENGINE),
            {engine.name: engine.threads for engine in engines},
        )
        yield _filled(
            GaugeMetricFamily(
                "samovar_engine_load_seconds",
                "Duration of the last load, from process start to loaded model, in seconds",
                labels=BY_ENGINE,
            ),
            {engine.name: engine.load_seconds for engine in engines},
        )
        yield _filled(
            GaugeMetricFamily(
                "samovar_engine_resident_bytes",
                "Resident memory of the engine process in bytes, counting shared weights in each engine",
                labels=BY_ENGINE,
            ),
            {name: use.resident for name, use in usage.items()},
        )
        yield _filled(
            GaugeMetricFamily(
                "samovar_engine_proportional_bytes",
                "Proportional memory of the engine process in bytes, dividing shared weights among the engines",
                labels=BY_ENGINE,
            ),
            {name: use.proportional for name, use in usage.items()},
        )
        yield _filled(
            GaugeMetricFamily("samovar_kv_cells_used", "KV cells in use, one per token", labels=BY_ENGINE),
            {engine.name: engine.cells_used for engine in engines},
        )
        # The name ends with `_total`, which promtool allows only for counters, so the metric has no type.
        yield _filled(
            UnknownMetricFamily("samovar_kv_cells_total", "KV cells of the engine, one per token", labels=BY_ENGINE),
            {engine.name: engine.cells for engine in engines},
        )

    def _counters(self) -> Iterable[Metric]:
        pool = self._pool
        yield _filled(
            CounterMetricFamily(
                "samovar_engine_cpu_seconds",
                "Processor time of the engine's processes, including ended ones, in seconds",
                labels=BY_ENGINE,
            ),
            {name: use.cpu_seconds for name, use in pool.usage.items()},
        )
        yield _filled(
            CounterMetricFamily("samovar_engine_restarts", "Restarts after a crash or hang", labels=BY_ENGINE),
            pool.restarts,
        )
        yield _filled(
            CounterMetricFamily("samovar_engine_unloads", "Unloads because the engine was idle", labels=BY_ENGINE),
            pool.unloads,
        )


def _filled(family: Families, values: Mapping[str, float]) -> Metric:
    for engine, value in values.items():
        family.add_metric((engine,), value)
    return family
