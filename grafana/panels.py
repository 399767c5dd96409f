"""Parts of a dashboard, independent of Grafana: rows (questions), panels (answers) and Prometheus queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Look = Literal["tile", "lines", "stack", "bars", "states"]

GATEWAYS: Final = 'instance=~"$instance"'
"""Label matcher for the gateways selected in the dashboard."""
ENGINES: Final = GATEWAYS + ',engine=~"$engine"'


@dataclass(frozen=True)
class Query:
    """An expression and the legend of its series. The legend is translated, except for `{{label}}`."""

    expression: str
    legend: str
    is_limit: bool = False
    """Whether the query is a limit, drawn as a dashed line over the others."""


@dataclass(frozen=True)
class Steps:
    """Values from which a tile is yellow and red; with `falling`, below which it is."""

    yellow: float
    red: float
    falling: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel. Its hint says what is normal and where to look otherwise."""

    title: str
    hint: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """Grafana's unit: s, bytes, percentunit, short, …"""
    look: Look = "lines"
    width: int = 8
    """Width in columns, of 24."""
    steps: Steps | None = None
    words: tuple[tuple[float, str, str], ...] = ()
    """Values of a tile that are shown as a coloured word: (value, word, colour)."""


@dataclass(frozen=True)
class Row:
    """A question, and the panels that answer it."""

    question: str
    hint: str
    panels: tuple[Panel, ...]


def metric(name: str, *matchers: str, engine: bool = False) -> str:
    """Return the selector of a metric for the selected gateways (and engines)."""
    return f"samovar_{name}{{{','.join((ENGINES if engine else GATEWAYS, *matchers))}}}"


def rate(counter: str, *matchers: str, engine: bool = False) -> str:
    """Return the increase of a counter per second, by series."""
    return f"rate({metric(counter, *matchers, engine=engine)}[$__rate_interval])"


def increase(counter: str, *matchers: str, engine: bool = False, over: str = "$__rate_interval") -> str:
    """Return the increase of a counter over a time range, by series."""
    return f"increase({metric(counter, *matchers, engine=engine)}[{over}])"


def total(series: str, *by: str) -> str:
    """Return the sum of series, grouped by the labels `by`."""
    return f"sum by ({', '.join(by)}) ({series})" if by else f"sum({series})"


def named(name: str) -> str:
    """Return the matcher for one limit."""
    return f'name="{name}"'


def limit(name: str, legend: str, how: str = "sum") -> Query:
    """Return a limit: `sum` over all gateways, or `max` of the gateways."""
    return Query(f"{how}({metric('limit', named(name))})", legend, is_limit=True)


def quantile(share: float, histogram: str, by: str = "") -> str:
    """Return the quantile `share` of a histogram's recent observations."""
    labels = ("le", by) if by else ("le",)
    return f"histogram_quantile({share}, {total(rate(f'{histogram}_bucket'), *labels)})"


def percentiles(histogram: str, *percents: int) -> tuple[Query, ...]:
    """Return the given percentiles of a histogram as queries."""
    return tuple(Query(quantile(percent / 100, histogram), f"p{percent}") for percent in percents)
