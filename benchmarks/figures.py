"""Figures that are not a comparison of conversations: how each is told, kept and judged."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.machine import cache_folder, engine_version, machine, revision


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured thing: every value of it, and what it should come to."""

    benchmark: str
    name: str
    values: list[float]
    unit: str
    goal: float | None = None
    """At most, or with `high` at least; None where nothing was promised."""
    high: bool = False
    date: str = msgspec.field(default_factory=lambda: datetime.date.today().isoformat())
    machine: str = msgspec.field(default_factory=machine)
    engine: str = msgspec.field(default_factory=engine_version)
    revision: str = msgspec.field(default_factory=revision)

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median is as good as promised; None without a promise."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.high else self.median <= self.goal

    @property
    def spread(self) -> str:
        """Least and greatest value, and how many there are."""
        if len(self.values) == 1:
            return "once"
        return f"{number(min(self.values))} to {number(max(self.values))}, {len(self.values)} times"

    @property
    def promise(self) -> str:
        """The goal in words."""
        return "" if self.goal is None else f"{'≥' if self.high else '≤'} {number(self.goal)}"

    def __str__(self) -> str:
        """A line for people."""
        goal = f"   goal {self.promise}: {'met' if self.met else 'NOT met'}" if self.goal is not None else ""
        return f"{self.name:58} {number(self.median):>8} {self.unit:6} ({self.spread}){goal}"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    return f"{value:.{digits}f}"


def tell(figures: Sequence[Figure]) -> None:
    """Print figures and keep them for the report."""
    with (cache_folder() / "figures.jsonl").open("ab") as file:
        for figure in figures:
            print(figure, flush=True)
            file.write(msgspec.json.encode(figure) + b"\n")


def told() -> dict[tuple[str, str], Figure]:
    """The newest of each benchmark and name, in the order in which they were first told.

    Without those that were measured with changes that no commit has.
    """
    path = cache_folder() / "figures.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    figures = [msgspec.json.decode(line, type=Figure) for line in lines]
    return {(figure.benchmark, figure.name): figure for figure in figures if not figure.revision.endswith("+")}
