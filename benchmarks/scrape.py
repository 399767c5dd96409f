"""The cost of a scrape of /metrics, which blocks the gateway's event loop.

python -m benchmarks.scrape: a pool of 16 engines, and every counter that a year of service could have created.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Final

import psutil

from benchmarks.figures import Figure, publish
from benchmarks.machine import machine
from cache import Operation
from engine import EnginePool, LearningCostModel, Stepped, WorkerConfig, heuristic, usage
from gateway import errors
from gateway.observability.learned_metrics import ROWS
from gateway.observability.metrics import GENERATING, NOT_FAILED, Metrics

ENGINES: Final = 16
SCRAPES: Final = 500
GOAL: Final = 5.0
"""Upper bound in milliseconds."""


def everything_counted() -> Metrics:
    """Return the metrics of a gateway with every label in use, and engines that are not started."""
    metrics = Metrics()
    pool = EnginePool(WorkerConfig("model", 4096, 32, heuristic(10**8, ENGINES, 1)), count=ENGINES, cores=ENGINES)
    pool.usage = dict.fromkeys(pool.usage, usage(os.getpid()))
    metrics.watch(pool, everything_learned())
    metrics.serve("model", {f"limit_{number}": number for number in range(12)})
    codes = [one.code for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.ApiError)]
    for route in GENERATING:
        for status in NOT_FAILED:
            metrics.ended(route, status, "", seconds=1.0)
        for code in codes:
            metrics.rejected(route, code)
            metrics.ended(route, "failed", code, seconds=1.0)
    for operation, outcomes in {
        "get": ("hit", "partial", "miss", "error", "timeout", "skipped"),
        "put": ("ok", "error", "timeout", "full", "skipped"),
        "touch": ("ok", "error", "timeout", "skipped"),
        "has": ("ok", "error", "timeout", "skipped"),
        "delete": ("ok", "error"),
        "sweep": ("ok", "error"),
        "open": ("corrupt",),
    }.items():
        for outcome in outcomes:
            metrics.store.observe(Operation("redis", operation, outcome, 0.01, 1000))
    metrics.store.watch("redis", lambda: True)
    metrics.stepped(Stepped(1, 1, 0.01, 1), trial=False)
    return metrics


def everything_learned() -> LearningCostModel:
    """Return a cost model that has seen every width at every number of engines."""
    plan = heuristic(10**8, ENGINES, ENGINES)
    costs = LearningCostModel(plan)
    for times in plan.times:
        for kind, widths in ROWS.items():
            for rows in widths:
                costs.observe(times.threads, kind, rows, 0.01, working=times.engines)
    return costs


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    metrics = everything_counted()
    page = metrics.text()
    lines = page.count(b"\n")
    print(f"{machine()}: {ENGINES} engines, {lines} lines, {len(page) / 1000:.0f} KB")
    times = []
    began = psutil.Process().cpu_times().user
    for _ in range(SCRAPES):
        started = time.perf_counter()
        metrics.text()
        times.append(1000 * (time.perf_counter() - started))
    spent = 1000 * (psutil.Process().cpu_times().user - began) / SCRAPES
    publish([Figure(benchmark="scrape", name=f"a scrape, {ENGINES} engines", values=times, unit="ms", goal=GOAL)])
    print(f"processor time of a scrape: {spent:.1f} ms")


if __name__ == "__main__":
    main()
