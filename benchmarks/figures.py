"""Figures of single benchmarks: how each is printed, stored and judged against its goal."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.machine import cache_folder, engine_version, processors, revision

DURATIONS: Final = ("s", "ms")
"""Units of time."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured quantity with all its values and its goal."""

    benchmark: str
    name: str
    values: list[float]
    unit: str
    goal: float | None = None
    """Upper bound for the median, or lower bound with `high`; None if there is no goal."""
    high: bool = False
    date: str = msgspec.field(default_factory=lambda: datetime.date.today().isoformat())
    machine: str = msgspec.field(default_factory=processors)
    engine: str = msgspec.field(default_factory=engine_version)
    revision: str = msgspec.field(default_factory=revision)

    @property
    def median(self) -> float:
        """The median value."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without a goal, or if the median is a negative duration.

        No latency is negative: such a figure is a measurement error and neither meets nor misses a goal.
        """
        if self.goal is None or (self.unit in DURATIONS and self.median < 0):
            return None
        return self.median >= self.goal if self.high else self.median <= self.goal

    @property
    def spread(self) -> str:
        """Smallest and largest value, and the number of values."""
        if len(self.values) == 1:
            return "once"
        return f"{number(min(self.values))} to {number(max(self.values))}, {len(self.values)} times"

    @property
    def bound(self) -> str:
        """The goal as text, such as `≤ 20.0`; empty without a goal."""
        return "" if self.goal is None else f"{'≥' if self.high else '≤'} {number(self.goal)}"

    def __str__(self) -> str:
        """One line for the terminal."""
        goal = "" if self.met is None else f"   goal {self.bound}: {'met' if self.met else 'NOT met'}"
        return f"{self.name:58} {number(self.median):>8} {self.unit:6} ({self.spread}){goal}"


def number(value: float) -> str:
    """Format with about three significant digits, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    return f"{value:.{digits}f}"


def publish(figures: Sequence[Figure]) -> None:
    """Print figures and store them for the report."""
    with (cache_folder() / "figures.jsonl").open("ab") as file:
        for figure in figures:
            print(figure, flush=True)
            file.write(msgspec.json.encode(figure) + b"\n")


def published() -> dict[tuple[str, str], Figure]:
    """Return the newest figure of each benchmark and name, in the order of their first measurement.

    Figures that were measured with uncommitted changes are left out.
    """
    path = cache_folder() / "figures.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    figures = [msgspec.json.decode(line, type=Figure) for line in lines]
    return {(figure.benchmark, figure.name): figure for figure in figures if not figure.revision.endswith("+")}
