"""Plots of memory, latency, start-up and load, with the write-up's figures in grey if they are of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from gateway.cli.bench.results import Results
from gateway.cli.bench.writeup import LATENCY, MEMORY, START

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THEIRS: Final[dict[str, Any]] = {"color": "0.75", "label": "write-up"}
GATEWAY, ENGINES, CONTEXT = "#8c6d46", "#c8553d", "#e8b04a"
PHASES: Final = {
    "before": "before",
    "loaded": "loaded",
    "first": "first\nanswer",
    "after": "after",
    "rounds": "further\nrounds",
    "rest": "at rest",
}
THEIR_START: Final = {
    "python": "Python",
    "configuration": "configuration",
    "vocabulary": "tokenizer",
    "listening": "port",
    "weights": "weights",
}


def draw(results: Results, folder: Path, stem: str) -> list[Path]:
    """Write the plots as .png and .svg, and return the files. Raises OSError."""
    from matplotlib.figure import Figure  # imported late: it takes a second, and only --output needs it

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, plot in zip(axes.flat, (_memory, _latency, _start, _load), strict=True):
        plot(results, axis)
    conditions = results.conditions
    figure.suptitle(
        f"{conditions.model} on {conditions.cores} cores of {conditions.processor}, {conditions.date}", fontsize=11
    )
    files = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    for file in files:
        figure.savefig(file, dpi=110)
    return files


def _memory(results: Results, axes: Axes) -> None:
    phases = results.memory
    places = range(len(phases))
    gateway = [phase.mean(lambda sample: sample.gateway) / 1e6 for phase in phases]
    engines = [phase.mean(lambda sample: sample.engines) / 1e6 for phase in phases]
    if results.compared:
        axes.bar(places, [MEMORY.get(phase.name, 0) for phase in phases], 0.8, **THEIRS)
    axes.bar(places, gateway, 0.5, color=GATEWAY, label="gateway")
    axes.bar(places, engines, 0.5, bottom=gateway, color=ENGINES, label="engines")
    axes.plot(places, [phase.peak / 1e6 for phase in phases], "k_", markersize=18, label="peak")
    axes.set_xticks(places, [PHASES[phase.name] for phase in phases])
    axes.set_ylim(0, 1.3 * max(axes.get_ylim()))
    _finish(axes, "resident memory, MB", columns=2)


def _latency(results: Results, axes: Axes) -> None:
    away = 0.2 if results.compared else 0.0
    for place, (shape, theirs) in enumerate(
        zip(results.latency, zip(LATENCY["first_token"], LATENCY["total"], strict=True), strict=True)
    ):
        first = shape.spread(lambda answer: answer.first)
        total = shape.spread(lambda answer: answer.total)
        label = _only_first(place)
        if results.compared:
            axes.barh(place + away, theirs[1], 0.35, **(THEIRS | label(THEIRS["label"])))
            axes.barh(place + away, theirs[0], 0.35, color="0.55", **label("write-up's first token"))
        axes.barh(place - away, total.median, 0.35, color=CONTEXT, **label("full answer"))
        axes.barh(place - away, first.median, 0.35, color=ENGINES, **label("first token"))
    names = [f"{shape.question} → {shape.answers[0].output}\ntokens" for shape in results.latency]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _finish(axes, "seconds, one conversation at a time", along="x")


def _start(results: Results, axes: Axes) -> None:
    ours = (
        ("Python", results.start(lambda start: start.python).median),
        ("configuration", results.start(lambda start: start.configuration + start.parts).median),
        ("tokenizer", results.start(lambda start: start.vocabulary).median),
        ("port", results.start(lambda start: start.listening).median),
        ("engine's Python", results.start(lambda start: start.engine).median),
        ("weights", results.start(lambda start: start.weights).median),
        ("KV cells", results.start(lambda start: start.context).median),
    )
    colours = dict(zip([name for name, _ in ours], _shades(len(ours)), strict=True))
    bars: dict[str, Sequence[tuple[str, float]]] = {"here": ours}
    if results.compared:
        bars["write-up"] = [(name, START[part]) for part, name in THEIR_START.items()]
    for place, parts in enumerate(bars.values()):
        at = 0.0
        for name, seconds in parts:
            axes.barh(place, seconds, left=at, color=colours[name], **_only_first(place)(name))
            at += seconds
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(1.5, -0.5)
    axes.set_xlim(0, 1.35 * max(axes.get_xlim()))  # room for the legend
    _finish(axes, "seconds to a loaded model", along="x")


def _load(results: Results, axes: Axes) -> None:
    counts = [str(load.conversations) for load in results.load]
    rates = [load.rate for load in results.load]
    firsts = [load.spread(lambda answer: answer.first).median for load in results.load]
    axes.bar(counts, [rate.median for rate in rates], 0.6, color=ENGINES, label="tokens per second, total")
    away = [[abs(rate.median - rate.bounds[end]) for rate in rates] for end in (0, 1)]
    axes.errorbar(counts, [rate.median for rate in rates], away, fmt="none", ecolor="black", capsize=4)
    axes.set_xlabel("concurrent conversations")
    other = axes.twinx()
    other.plot(counts, firsts, "o-", color=GATEWAY, label="first token, s (right)")
    other.set_ylim(0, 1.25 * max(firsts))
    axes.set_ylim(0, 1.25 * max(rate.bounds[1] for rate in rates))
    axes.plot([], [], "o-", color=GATEWAY, label="first token, s (right)")
    _finish(axes, "load", columns=2)


def _only_first(place: int) -> Any:
    """Return legend labels that appear only once, for the first bar."""
    return lambda text: {"label": text if place == 0 else None}


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["YlOrBr"](0.15 + 0.8 * place / count) for place in range(count)]


def _finish(axes: Axes, title: str, *, along: Literal["x", "y"] = "y", columns: int = 1) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(axis=along, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=columns, loc="upper left" if along == "y" else "upper right")
