"""What Prometheus is told. Labels never carry a user, key, session or response id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from engine import EnginePool, State, Stepped
from gateway.storemetrics import StoreMetrics

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)

ROUTES: Final = {"responses": "responses", "chat": "chat_completions", "models": "models"}
"""What comes after `/v1/`, and the label that it has; all else is `other`, so that strangers invent no labels."""


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        """Begin at zero."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the page and no board reads them
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "samovar_requests", "Requests by how they ended", ["route", "status", "code"], registry=r
        )
        self.waiting = Gauge("samovar_requests_waiting", "Requests in the queue", registry=r)
        self.running = Gauge("samovar_requests_running", "Requests that have an engine", registry=r)
        self.queue = Histogram("samovar_queue_seconds", "Wait for an engine", buckets=BUCKETS, registry=r)
        self.ttft = Histogram(
            "samovar_time_to_first_token_seconds",
            "From a request's arrival to its first delta sent, queue included",
            ["cache"],
            buckets=BUCKETS,
            registry=r,
        )
        self.gap = Histogram(
            "samovar_inter_token_seconds", "Between two tokens of an answer", buckets=BUCKETS, registry=r
        )
        self.seconds = Histogram(
            "samovar_request_seconds", "From arrival to the last event", buckets=BUCKETS, registry=r
        )
        self.prompt_tokens = Counter(
            "samovar_prompt_tokens", "Prompt tokens by where they came from", ["source"], registry=r
        )
        self.generated = Counter("samovar_generation_tokens", "Tokens of answers", registry=r)
        self.connections = Gauge("samovar_websocket_connections", "Open WebSocket connections", registry=r)
        self.sessions = Gauge(
            "samovar_sessions_active", "Conversations with a turn in the last five minutes", registry=r
        )
        self.store = StoreMetrics(r)
        self.batch = Histogram(
            "samovar_engine_batch_size", "Sequences in a step", buckets=(1, 2, 3, 4, 6, 8, 12, 16), registry=r
        )
        self.step = Histogram("samovar_engine_step_seconds", "Time of a step", buckets=BUCKETS, registry=r)
        self.limit = Gauge("samovar_limit", "Configured limits, for thresholds on boards", ["name"], registry=r)

    def watch(self, pool: EnginePool) -> None:
        """Tell the pool's state whenever Prometheus asks."""
        self.registry.register(_Engines(pool))

    def ended(self, route: str, status: str, code: str, *, seconds: float) -> None:
        """Count a request that ended, with the `code` of its error, if any, `seconds` after it came."""
        self.requests.labels(route, status, code).inc()
        self.seconds.observe(seconds)

    def refused(self, path: str, code: str) -> None:
        """Count a request that did not get past the door."""
        self.requests.labels(ROUTES.get(path.removeprefix("/v1/").partition("/")[0], "other"), "rejected", code).inc()

    def stepped(self, step: Stepped) -> None:
        """An engine made a step."""
        self.batch.observe(step.sequences)
        self.step.observe(step.seconds)

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """Engine metrics, read off the pool at each scrape."""

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        engines = self._pool.engines
        state = GaugeMetricFamily("samovar_engine_state", "1 for the state an engine is in", labels=["engine", "state"])
        for engine in engines:
            for value in State:
                state.add_metric([engine.name, value.value], float(engine.state is value))
        yield state
        yield from _by_engine(
            "samovar_engine_threads", "Threads it may use now", [(e.name, e.threads) for e in engines]
        )
        yield from _by_engine("samovar_kv_cells_total", "KV cells", [(e.name, e.cells) for e in engines])
        yield from _by_engine("samovar_engine_load_seconds", "Last load", [(e.name, e.load_seconds) for e in engines])
        yield from _by_engine("samovar_kv_cells_used", "KV cells in use", [(e.name, e.cells_used) for e in engines])
        yield _counter("samovar_engine_restarts", "Restarts after a crash", self._pool.restarts)
        yield _counter("samovar_engine_unloads", "Times that it was unloaded for being idle", self._pool.unloads)
        yield from self._resources()

    def _resources(self) -> Iterator[Metric]:
        usage = self._pool.usage
        resident = [(name, use.resident) for name, use in usage.items()]
        proportional = [(name, use.proportional) for name, use in usage.items()]
        yield from _by_engine("samovar_engine_resident_bytes", "Memory, shared weights included", resident)
        yield from _by_engine("samovar_engine_proportional_bytes", "Memory, shared weights split", proportional)
        yield _counter(
            "samovar_engine_cpu_seconds", "Processor time", {name: use.cpu_seconds for name, use in usage.items()}
        )
        own = GaugeMetricFamily("samovar_gateway_resident_bytes", "Memory of the gateway itself")
        own.add_metric([], psutil.Process().memory_info().rss)
        yield own


def _counter(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = Metric(name, text, "counter")
    for engine, value in values.items():
        family.add_sample(f"{name}_total", {"engine": engine}, value)
    return family


def _by_engine(name: str, text: str, values: Sequence[tuple[str, float]]) -> Iterator[Metric]:
    family = GaugeMetricFamily(name, text, labels=["engine"])
    for engine, value in values:
        family.add_metric([engine], value)
    yield family
