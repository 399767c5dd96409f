"""What Prometheus is told. Labels never carry a user, key, session or response id."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from engine import EnginePool, Stepped
from gateway import errors
from gateway.observability.engine_metrics import EngineMetrics
from gateway.observability.store_metrics import StoreMetrics

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
"""Seconds: from a cached token on a fast machine to a long answer on a slow one."""
WIDTHS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Sequences of a step, as plans group them."""

ROUTES: Final = {"responses": "responses", "chat": "chat_completions", "models": "models"}
"""What comes after `/v1/`, and the label that it has; all else is `other`, so that strangers invent no labels."""
ANSWERING: Final = ("responses", "chat_completions")
"""Routes that answer."""
ENDED_WELL: Final = ("completed", "incomplete", "cancelled")
FAILURES: Final = (
    errors.EngineUnavailableError,
    errors.StoreUnavailableError,
    errors.QueueTimeoutError,
    errors.QueueFullError,
    errors.InternalError,
)
REFUSALS: Final = (
    errors.QueueFullError,
    errors.RateLimitExceededError,
    errors.InvalidRequestError,
    errors.InternalError,
)


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        """Begin at zero."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the page and no board reads them
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "samovar_requests",
            "Requests that ended, by how: completed, incomplete, failed, cancelled or rejected, with the error's code",
            ["route", "status", "code"],
            registry=r,
        )
        self.waiting = Gauge("samovar_requests_waiting", "Requests in the queue now", registry=r)
        self.running = Gauge("samovar_requests_running", "Requests that have an engine now", registry=r)
        self.queue = _seconds("queue", "From a request's arrival to its place at an engine", r)
        self.ttft = Histogram(
            "samovar_time_to_first_token_seconds",
            "From a request's arrival to its first delta sent, queue included, in seconds; cache: hit (all that was "
            "said before came from engine or store), partial or miss",
            ["cache"],
            buckets=BUCKETS,
            registry=r,
        )
        self.gap = _seconds("inter_token", "Between two tokens of an answer", r)
        self.seconds = _seconds("request", "From a request's arrival to its last event, unless it was rejected", r)
        self.prompt_tokens = Counter(
            "samovar_prompt_tokens",
            "Tokens of prompts, by whether they were computed, still in the engine, or fetched from the store",
            ["source"],
            registry=r,
        )
        self.generated = Counter("samovar_generation_tokens", "Tokens of answers", registry=r)
        self.connections = Gauge("samovar_websocket_connections", "WebSocket connections open now", registry=r)
        self.sessions = Gauge(
            "samovar_sessions_active", "Conversations that had a turn in the last five minutes", registry=r
        )
        self.dropped_turns = Counter(
            "samovar_dropped_turns",
            "Stored turns that went because their user, or all users together, stored too much",
            registry=r,
        )
        self.store = StoreMetrics(r)
        self.batch = Histogram(
            "samovar_engine_batch_size", "Sequences in a step of an engine", buckets=WIDTHS, registry=r
        )
        self.step = _seconds("engine_step", "Of a step of an engine", r)
        self.prompt_workers = Counter(
            "samovar_prompt_worker_restarts",
            "Processes that render and tokenize prompts which died and were replaced",
            registry=r,
        )
        self._limit = Gauge("samovar_limit", "Limits in force, for thresholds on boards", ["name"], registry=r)
        self._build = Gauge(
            "samovar_build_info",
            "1, with what this gateway is in its labels",
            ["version", "llama_cpp_python", "model"],
            registry=r,
        )
        self._show_zeros()

    def watch(self, pool: EnginePool) -> None:
        """Tell the pool's state whenever Prometheus asks."""
        self.registry.register(EngineMetrics(pool))

    def serve(self, model: str, limits: Mapping[str, float]) -> None:
        """Tell which model is served, within which limits by name."""
        self._build.labels(version("samovar"), version("llama-cpp-python"), model).set(1)
        for name, value in limits.items():
            self._limit.labels(name).set(value)

    def ended(self, route: str, status: str, code: str, *, seconds: float) -> None:
        """Count a request that ended, with the `code` of its error, if any, `seconds` after it came."""
        self.requests.labels(route, status, code).inc()
        self.seconds.observe(seconds)

    def rejected(self, route: str, code: str) -> None:
        """Count a request that was refused before it began."""
        self.requests.labels(route, "rejected", code).inc()

    def refused(self, path: str, code: str) -> None:
        """Count one that was refused over HTTP."""
        self.rejected(ROUTES.get(path.removeprefix("/v1/").partition("/")[0], "other"), code)

    def stepped(self, step: Stepped) -> None:
        """An engine made a step."""
        self.batch.observe(step.sequences)
        self.step.observe(step.seconds)

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)

    def _show_zeros(self) -> None:
        """Begin what is counted at 0: a first failure that comes out of nowhere is no increase to Prometheus."""
        for route in ANSWERING:
            for status in ENDED_WELL:
                self.requests.labels(route, status, "")
            for failure in FAILURES:
                self.requests.labels(route, "failed", failure.code)
            for refusal in REFUSALS:
                self.requests.labels(route, "rejected", refusal.code)
        for source in ("computed", "engine", "store"):
            self.prompt_tokens.labels(source)
        for cache in ("hit", "partial", "miss"):
            self.ttft.labels(cache)


def _seconds(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"samovar_{name}_seconds", f"{text}, in seconds", buckets=BUCKETS, registry=registry)
