"""Prometheus metrics. Labels never contain a user, key, session or response id."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from engine import EnginePool, LearningCostModel, Stepped
from gateway import errors
from gateway.observability.engine_metrics import EngineMetrics
from gateway.observability.learned_metrics import LearnedMetrics
from gateway.observability.store_metrics import StoreMetrics

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
"""Histogram buckets in seconds: from a cached token on a fast machine to a long answer on a slow one."""
WIDTHS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Histogram buckets in sequences per step, the widths of cost models."""

ROUTES: Final = {
    "/v1/responses": "responses",
    "/v1/chat": "chat_completions",
    "/v1/completions": "completions",
    "/v1/messages": "messages",
    "/v1/models": "models",
    "/api/chat": "ollama_chat",
    "/api/generate": "ollama_generate",
}
"""Labels by the first two segments of the path. All others get `other`, so that clients cannot create labels."""
GENERATING: Final = ("responses", "chat_completions", "completions", "messages", "ollama_chat", "ollama_generate")
"""Labels of the routes that generate responses."""
NOT_FAILED: Final = ("completed", "incomplete", "cancelled")
"""Statuses without an error code."""
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
    """The metrics of one gateway, in a separate registry."""

    def __init__(self) -> None:
        """Create all metrics with value 0."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the output and no dashboard uses them
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "samovar_requests",
            "Ended requests by status (completed, incomplete, failed, cancelled or rejected) and error code",
            ["route", "status", "code"],
            registry=r,
        )
        self.waiting = Gauge("samovar_requests_waiting", "Requests waiting in the queue", registry=r)
        self.running = Gauge("samovar_requests_running", "Requests running on an engine", registry=r)
        self.queue = _seconds("queue", "Time from a request's arrival to its placement on an engine", r)
        self.ttft = Histogram(
            "samovar_time_to_first_token_seconds",
            "Time from a request's arrival to its first delta, including the queue, in seconds; cache: hit (KV of all "
            "earlier turns came from the engine or the store), partial or miss",
            ["cache"],
            buckets=BUCKETS,
            registry=r,
        )
        self.gap = _seconds("inter_token", "Time between two tokens of an answer", r)
        self.seconds = _seconds("request", "Time from arrival to last event of requests that were not rejected", r)
        self.prompt_tokens = Counter(
            "samovar_prompt_tokens",
            "Prompt tokens by source: computed, cached in the engine, or fetched from the store",
            ["source"],
            registry=r,
        )
        self.generated = Counter("samovar_generation_tokens", "Generated tokens", registry=r)
        self.connections = Gauge("samovar_websocket_connections", "Open WebSocket connections", registry=r)
        self.sessions = Gauge(
            "samovar_sessions_active", "Conversations with a turn in the last five minutes", registry=r
        )
        self.dropped_turns = Counter(
            "samovar_dropped_turns",
            "Stored turns deleted because their user, or all users together, exceeded the storage limit",
            registry=r,
        )
        self.store = StoreMetrics(r)
        self.batch = Histogram("samovar_engine_batch_size", "Sequences per engine step", buckets=WIDTHS, registry=r)
        self.step = _seconds("engine_step", "Duration of an engine step", r)
        self.trials = Counter(
            "samovar_trial_seconds",
            "Time of engine steps in trials of what the cost model does not know, in seconds; kind: width (another "
            "batch size) or engines (another number of engines)",
            ["kind"],
            registry=r,
        )
        self.drafted = Counter(
            "samovar_spec_tokens_drafted", "Draft tokens that engine steps computed in addition", registry=r
        )
        self.accepted = Counter(
            "samovar_spec_tokens_accepted", "Draft tokens that became part of an answer", registry=r
        )
        self.prompt_workers = Counter(
            "samovar_prompt_worker_restarts",
            "Restarts of prompt workers, the processes that render and tokenize prompts",
            registry=r,
        )
        self._limit = Gauge("samovar_limit", "Configured limits, for thresholds on dashboards", ["name"], registry=r)
        self._build = Gauge(
            "samovar_build_info",
            "Always 1; the labels describe this gateway",
            ["version", "llama_cpp_python", "model"],
            registry=r,
        )
        self._show_zeros()

    def watch(self, pool: EnginePool, costs: LearningCostModel) -> None:
        """Register the metrics of the pool and of the cost model, which are read at each scrape."""
        self.registry.register(EngineMetrics(pool))
        self.registry.register(LearnedMetrics(costs))

    def serve(self, model: str, limits: Mapping[str, float]) -> None:
        """Set the build info and the limits by name."""
        self._build.labels(version("samovar"), version("llama-cpp-python"), model).set(1)
        for name, value in limits.items():
            self._limit.labels(name).set(value)

    def ended(self, route: str, status: str, code: str, *, seconds: float) -> None:
        """Count a request that ended `seconds` after its arrival; `code` is its error code or empty."""
        self.requests.labels(route, status, code).inc()
        self.seconds.observe(seconds)

    def rejected(self, route: str, code: str) -> None:
        """Count a request that was rejected before it was admitted."""
        self.requests.labels(route, "rejected", code).inc()

    def refused(self, path: str, code: str) -> None:
        """Count an HTTP request for `path` that was rejected."""
        self.rejected(ROUTES.get("/".join(path.split("/")[:3]), "other"), code)

    def stepped(self, step: Stepped, *, trial: bool) -> None:
        """Record a step of an engine; `trial` is whether another number of engines is being tried."""
        self.batch.observe(step.sequences)
        self.step.observe(step.seconds)
        self.drafted.inc(step.drafted)
        self.accepted.inc(step.accepted)
        if step.trial or trial:
            self.trials.labels("width" if step.trial else "engines").inc(step.seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def _show_zeros(self) -> None:
        """Export counters as 0 from the start: Prometheus sees no increase in a series that starts with a failure."""
        for route in GENERATING:
            for status in NOT_FAILED:
                self.requests.labels(route, status, "")
            for failure in FAILURES:
                self.requests.labels(route, "failed", failure.code)
            for refusal in REFUSALS:
                self.requests.labels(route, "rejected", refusal.code)
        for tried in ("width", "engines"):
            self.trials.labels(tried)
        for source in ("computed", "engine", "store"):
            self.prompt_tokens.labels(source)
        for cache in ("hit", "partial", "miss"):
            self.ttft.labels(cache)


def _seconds(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"samovar_{name}_seconds", f"{text}, in seconds", buckets=BUCKETS, registry=registry)
