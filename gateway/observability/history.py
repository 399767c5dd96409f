"""The last hour of the figures that the monitor page draws, so that the page has a past when it is opened."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.registry import CollectorRegistry

EVERY: Final = 10.0
"""Seconds between two samples."""
SAMPLES: Final = 360
"""Samples that are kept: those of an hour."""
SERIES: Final = {
    "samovar_generation_tokens_total": (),
    "samovar_requests_waiting": (),
    "samovar_requests_running": (),
    "samovar_engine_restarts_total": (),
    "samovar_time_to_first_token_seconds_bucket": ("le",),
}
"""The sampled series by name, with the labels that are kept; samples that differ in others are added up."""
Key = tuple[str, tuple[str, ...]]
Sample = dict[Key, float]


class History:
    """A ring of samples. Its size is bounded: SAMPLES times about twenty numbers."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        """Sample the metrics of `registry`; `clock` returns seconds."""
        self._registry = registry
        self._clock = clock
        self._samples: deque[tuple[float, Sample]] = deque(maxlen=SAMPLES)

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(EVERY)

    def sample(self) -> None:
        """Take one sample."""
        names = {name.removesuffix("_total").removesuffix("_bucket") for name in SERIES}
        metrics = (metric for metric in self._registry.collect() if metric.name in names)
        self._samples.append((self._clock(), _sums(metrics)))

    def body(self) -> dict[str, Any]:
        """Return the samples, oldest first: the age of each in seconds, and the values of each series."""
        now, samples = self._clock(), list(self._samples)
        keys = dict.fromkeys(key for _, sample in samples for key in sample)
        return {
            "every": EVERY,
            "ages": [round(now - at, 1) for at, _ in samples],
            "series": [
                {
                    "name": name,
                    "labels": dict(zip(SERIES[name], labels, strict=True)),
                    "values": [sample.get((name, labels)) for _, sample in samples],
                }
                for name, labels in keys
            ],
        }


def _sums(metrics: Iterable[Metric]) -> Sample:
    sums: Sample = {}
    for metric in metrics:
        for one in metric.samples:
            if one.name in SERIES:
                key = (one.name, tuple(one.labels[label] for label in SERIES[one.name]))
                sums[key] = sums.get(key, 0.0) + one.value
    return sums
