"""What Prometheus is told of the engines, read off the pool at each scrape."""

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
    """The metrics of a pool and of its gateway's process: nothing is kept here that these could contradict."""

    def __init__(self, pool: EnginePool) -> None:
        """Tell of `pool`."""
        self._pool = pool
        self._own = psutil.Process()

    def collect(self) -> Iterable[Metric]:
        """All of them as they are now."""
        yield self._states()
        yield from self._gauges()
        yield from self._counters()
        yield GaugeMetricFamily(
            "samovar_gateway_resident_bytes",
            "Memory of the gateway's own process, in bytes",
            value=self._own.memory_info().rss,
        )

    def _states(self) -> Metric:
        family = GaugeMetricFamily(
            "samovar_engine_state",
            "1 for the state that an engine is in (stopped, loading, idle, busy or failed), 0 for the others",
            labels=("engine", "state"),
        )
        for engine in self._pool.engines:
            for state in State:
                family.add_metric((engine.name, state.value), float(engine.state is state))
        return family

    def _gauges(self) -> Iterable[Metric]:
        engines, usage = self._pool.engines, self._pool.usage
        yield _told(
            GaugeMetricFamily("samovar_engine_threads", "Threads that it may compute with now", labels=BY_ENGINE),
            {engine.name: engine.threads for engine in engines},
        )
        yield _told(
            GaugeMetricFamily(
                "samovar_engine_load_seconds",
                "Time from the start of its process to a loaded model when it was last started, in seconds",
                labels=BY_ENGINE,
            ),
            {engine.name: engine.load_seconds for engine in engines},
        )
        yield _told(
            GaugeMetricFamily(
                "samovar_engine_resident_bytes",
                "Memory of its process in bytes, weights that engines share counted in each",
                labels=BY_ENGINE,
            ),
            {name: use.resident for name, use in usage.items()},
        )
        yield _told(
            GaugeMetricFamily(
                "samovar_engine_proportional_bytes",
                "Memory of its process in bytes, weights that engines share counted once among them",
                labels=BY_ENGINE,
            ),
            {name: use.proportional for name, use in usage.items()},
        )
        yield _told(
            GaugeMetricFamily("samovar_kv_cells_used", "KV cells, one a token, that hold something", labels=BY_ENGINE),
            {engine.name: engine.cells_used for engine in engines},
        )
        # Its name ends like a counter's, which promtool forbids a gauge: so it is told without a type.
        yield _told(
            UnknownMetricFamily("samovar_kv_cells_total", "KV cells, one a token, that it has", labels=BY_ENGINE),
            {engine.name: engine.cells for engine in engines},
        )

    def _counters(self) -> Iterable[Metric]:
        pool = self._pool
        yield _told(
            CounterMetricFamily(
                "samovar_engine_cpu_seconds",
                "Processor time of its processes, those that are gone included, in seconds",
                labels=BY_ENGINE,
            ),
            {name: use.cpu_seconds for name, use in pool.usage.items()},
        )
        yield _told(
            CounterMetricFamily("samovar_engine_restarts", "Starts after it crashed or hung", labels=BY_ENGINE),
            pool.restarts,
        )
        yield _told(
            CounterMetricFamily(
                "samovar_engine_unloads", "Times that it was idle and gave its memory back", labels=BY_ENGINE
            ),
            pool.unloads,
        )


def _told(family: Families, values: Mapping[str, float]) -> Metric:
    for engine, value in values.items():
        family.add_metric((engine,), value)
    return family
