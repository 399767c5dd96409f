"""Prometheus metrics of the cost model, read from it at each scrape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine import LearningCostModel

ROWS: Final[dict[Literal["decode", "prefill"], tuple[int, ...]]] = {
    "decode": (1, 2, 4, 8, 16),
    "prefill": (8, 32, 128, 256),
}
"""Widths that are exported, by kind of step, so that the number of series is bounded."""


class LearnedMetrics(Collector):
    """What the cost model has learned."""

    def __init__(self, costs: LearningCostModel) -> None:
        """Collect metrics of `costs`."""
        self._costs = costs

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics with their current values."""
        yield GaugeMetricFamily(
            "samovar_cost_model_samples",
            "Engine steps from which the cost model has learned, including those of earlier runs",
            value=self._costs.samples,
        )
        family = GaugeMetricFamily(
            "samovar_learned_step_seconds",
            "Usual duration of an engine step in seconds as learned, by working engines, their threads, kind (decode "
            "or prefill) and rows",
            labels=("engines", "threads", "kind", "rows"),
        )
        for step in self._costs.learned():
            if step.rows in ROWS[step.kind]:
                labels = (str(step.engines), str(step.threads), step.kind, str(step.rows))
                family.add_metric(labels, step.seconds)
        yield family
