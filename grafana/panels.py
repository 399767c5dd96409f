"""What a board is made of: rows that ask a question, panels that answer it, queries of Prometheus. No Grafana here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Look = Literal["tile", "lines", "stack", "bars", "states"]

GATEWAYS: Final = 'instance=~"$instance"'
"""Selects what the board's variables say."""
ENGINES: Final = GATEWAYS + ',engine=~"$engine"'


@dataclass(frozen=True)
class Query:
    """One expression, and what its series are called; words of the legend are translated, `{{label}}` stays."""

    expression: str
    legend: str
    is_limit: bool = False
    """Whether it is a threshold: drawn over the others, dashed."""


@dataclass(frozen=True)
class Steps:
    """From which value on a tile is yellow, and from which red; with `falling`, below which."""

    yellow: float
    red: float
    falling: bool = False


@dataclass(frozen=True)
class Panel:
    """One answer. Its hint says what is normal and what to look at when it is not."""

    title: str
    hint: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """As Grafana names it: s, bytes, percentunit, short, …"""
    look: Look = "lines"
    width: int = 8
    """Of 24."""
    steps: Steps | None = None
    words: tuple[tuple[float, str, str], ...] = ()
    """Values of a tile that are told as a word, in a colour."""


@dataclass(frozen=True)
class Row:
    """One question, with the panels that answer it."""

    question: str
    hint: str
    panels: tuple[Panel, ...]


def metric(name: str, *matchers: str, engine: bool = False) -> str:
    """The series of a metric, of the instances (and engines) that are looked at."""
    return f"samovar_{name}{{{','.join((ENGINES if engine else GATEWAYS, *matchers))}}}"


def rate(counter: str, *matchers: str, engine: bool = False) -> str:
    """A counter's rise a second, by series."""
    return f"rate({metric(counter, *matchers, engine=engine)}[$__rate_interval])"


def increase(counter: str, *matchers: str, engine: bool = False, over: str = "$__rate_interval") -> str:
    """A counter's rise over a time, by series."""
    return f"increase({metric(counter, *matchers, engine=engine)}[{over}])"


def total(series: str, *by: str) -> str:
    """The sum of series; with `by`, one for each value of these labels."""
    return f"sum by ({', '.join(by)}) ({series})" if by else f"sum({series})"


def named(name: str) -> str:
    """Selects one of the limits."""
    return f'name="{name}"'


def limit(name: str, legend: str, how: str = "sum") -> Query:
    """A limit as a threshold: `sum` of what the gateways have together, or `max` of what each may."""
    return Query(f"{how}({metric('limit', named(name))})", legend, is_limit=True)


def quantile(share: float, histogram: str, by: str = "") -> str:
    """Below what so many of a histogram's observations lay lately."""
    labels = ("le", by) if by else ("le",)
    return f"histogram_quantile({share}, {total(rate(f'{histogram}_bucket'), *labels)})"


def percentiles(histogram: str, *percents: int) -> tuple[Query, ...]:
    """Such quantiles of a histogram, as lines."""
    return tuple(Query(quantile(percent / 100, histogram), f"p{percent}") for percent in percents)
