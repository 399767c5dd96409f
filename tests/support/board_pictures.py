"""`make pictures`: the board, drawn from its own queries over a run in which everything that it shows happens."""

from __future__ import annotations

import asyncio
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from grafana.board import ROWS
from grafana.panels import Panel, Query, Row
from grafana.words import chinese, english
from tests.ops.test_board import RULES
from tests.support.prometheus_server import PrometheusServer
from tests.support.redis_server import RedisServer
from tests.support.running import Gateway

Say = Callable[[str], str]

PICTURES: Final = {"board.png": english, "board-zh.png": chinese}
NAME: Final = "samovar:8000"
STEP: Final = 2.0
CROWD: Final = 34
"""More than may run and wait at once."""
RATE: Final = "12s"
"""Of Prometheus's rates: the run takes minutes, not days."""
QUESTIONS: Final = (
    "What is tea?",
    "And where does it grow?",
    "Who drinks most of it?",
    "Tell me a story about a samovar.",
)
WIDTH, TILE, PLOT, HEAD, GAP = 16.0, 1.0, 2.1, 0.72, 0.12
"""Inches."""
PAPER, CARD, INK, FAINT = "#111217", "#1b1e23", "#d5d7de", "#8b8f99"
GREEN, YELLOW, RED = "#3d9950", "#c9a50f", "#e0455a"
COLOURS: Final = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#ff7383", "#8ab8ff", "#96d98d", "#ffee52")
SIZES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


@dataclass(frozen=True)
class Series:
    """One line of a panel: values by second of the run."""

    name: str
    values: dict[float, float]
    is_limit: bool


async def converse(gateway: Gateway, turns: int, previous: str | None = None, *, pause: float = 1.0) -> str | None:
    """A conversation of so many turns; gives the id of its last answer."""
    async with gateway.connect() as conversation:
        for turn in range(turns):
            events = await conversation.ask(
                QUESTIONS[turn % len(QUESTIONS)], previous_response_id=previous, max_output_tokens=80
            )
            response = getattr(events[-1], "response", None)
            previous = previous if response is None else response.id
            await asyncio.sleep(pause)
    return previous


async def day(gateway: Gateway, redis: RedisServer) -> None:
    """People come, a crowd comes, an engine crashes, all leave, some come back, Redis goes and comes."""
    early = await asyncio.gather(*(converse(gateway, 5) for _ in range(2)))
    crowd = [asyncio.create_task(converse(gateway, 2, pause=0.2)) for _ in range(CROWD)]
    await asyncio.sleep(12)
    for engine in gateway.engines()[:1]:
        engine.kill()
    await asyncio.gather(*crowd)
    await asyncio.sleep(28)  # longer than idle_unload
    await asyncio.gather(*(converse(gateway, 3, previous) for previous in early))
    redis.stop()
    await converse(gateway, 6)
    redis.start()
    await asyncio.gather(*(converse(gateway, 5) for _ in range(3)))
    await asyncio.sleep(4)


def ask(prometheus: PrometheusServer, query: Query, seconds: float, say: Say) -> list[Series]:
    """The series of a query, over the seconds of the run."""
    expression = query.expression.replace("$__rate_interval", RATE).replace("$instance", ".+").replace("$engine", ".+")
    found = prometheus.range(expression, seconds=seconds, step=STEP)
    end = time.time()

    def named(labels: dict[str, str]) -> str:
        return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), say(query.legend))

    def numbers(series: dict[str, Any]) -> dict[float, float]:
        pairs = ((seconds - (end - float(at)), float(value)) for at, value in series["values"])
        return {round(at / STEP) * STEP: value for at, value in pairs if not math.isnan(value)}

    return [Series(named(series["metric"]), numbers(series), query.is_limit) for series in found]


def formatted(value: float, unit: str) -> str:
    """A value with its unit, short."""
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    if unit == "s":
        return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.3g} s"
    scale, letter = next(((scale, letter) for scale, letter in SIZES if abs(value) >= scale), (1, ""))
    ending = {"bytes": "B", "Bps": "B/s"}.get(unit, "")
    return f"{value / scale:.3g} {letter}{ending}".strip()


def colour(panel: Panel, value: float) -> str:
    """Of a tile."""
    for number, _, name in panel.words:
        if value == number:
            return {"red": RED, "green": GREEN}[name]
    if panel.steps is None:
        return CARD
    low, middle, high = (RED, YELLOW, GREEN) if panel.steps.falling else (GREEN, YELLOW, RED)
    first, second = sorted((panel.steps.yellow, panel.steps.red))
    return high if value >= second else middle if value >= first else low


def draw_tile(axes: Axes, panel: Panel, series: Sequence[Series], say: Say) -> None:
    """The latest value, large."""
    value = list(series[0].values.values())[-1] if series and series[0].values else None
    words = {number: say(word) for number, word, _ in panel.words}
    axes.set_facecolor(CARD if value is None else colour(panel, value))
    text = "–" if value is None else words.get(value, formatted(value, panel.unit))
    axes.text(0.5, 0.42, text, transform=axes.transAxes, ha="center", va="center", fontsize=20, color="white")
    axes.text(
        0.5, 0.84, say(panel.title), transform=axes.transAxes, ha="center", va="center", fontsize=9, color="white"
    )
    axes.set(xticks=[], yticks=[])


def draw_states(axes: Axes, series: Sequence[Series]) -> None:
    """A bar for the time of each."""
    for row, one in enumerate(series):
        axes.broken_barh([(at, STEP) for at in one.values], (row + 0.15, 0.7), color=RED)
    axes.set_yticks([row + 0.5 for row in range(len(series))], [one.name for one in series])
    axes.set_ylim(len(series), 0)


def draw_lines(axes: Axes, panel: Panel, series: Sequence[Series], ticks: Sequence[float]) -> None:
    """Lines, or what is stacked on each other, and limits across."""
    plain = [one for one in series if not one.is_limit]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(plain))]
    if panel.look in ("stack", "bars"):
        heights = [[one.values.get(at, 0.0) for at in ticks] for one in plain]
        names = [one.name for one in plain]
        if heights:
            axes.stackplot(ticks, heights, labels=names, colors=colours, alpha=0.75, step="post")
    else:
        for one, of in zip(plain, colours, strict=True):
            axes.plot(ticks, [one.values.get(at, math.nan) for at in ticks], color=of, label=one.name, linewidth=1.1)
    for one in series:
        if one.is_limit:
            axes.plot(list(one.values), list(one.values.values()), "--", color=RED, label=one.name, linewidth=1)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.yaxis.set_major_formatter(lambda value, _: formatted(value, panel.unit))
    axes.grid(color=FAINT, alpha=0.15)
    if series:
        legend = axes.legend(loc="upper left", fontsize=6, ncols=3, frameon=False, labelcolor=INK)
        legend.set_in_layout(False)


def draw_panel(axes: Axes, panel: Panel, series: Sequence[Series], ticks: Sequence[float], say: Say) -> None:
    """One panel, whatever its look."""
    if panel.look == "tile":
        draw_tile(axes, panel, series, say)
        return
    axes.set_facecolor(CARD)
    axes.set_title(say(panel.title), fontsize=9, color=INK, loc="left", pad=4)
    if panel.look == "states":
        draw_states(axes, series)
    else:
        draw_lines(axes, panel, series, ticks)
    axes.set_xlim(ticks[0], ticks[-1])
    axes.xaxis.set_major_formatter(lambda at, _: f"{int(at) // 60}:{int(at) % 60:02d}")
    axes.tick_params(colors=FAINT, labelsize=6, length=2)
    axes.spines[:].set_visible(False)


def lines_of(row: Row) -> list[list[Panel]]:
    """A row's panels, as they fill the board's width."""
    lines: list[list[Panel]] = [[]]
    for panel in row.panels:
        if sum(other.width for other in lines[-1]) + panel.width > 24:
            lines.append([])
        lines[-1].append(panel)
    return lines


def draw(prometheus: PrometheusServer, seconds: float, say: Say, path: Path) -> None:
    """The whole board."""
    rows = [(row, lines_of(row)) for row in ROWS]
    heights = [HEAD + sum((TILE if line[0].look == "tile" else PLOT) + GAP for line in lines) for _, lines in rows]
    height = sum(heights) + GAP
    figure = Figure(figsize=(WIDTH, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    ticks = [STEP * number for number in range(int(seconds / STEP) + 1)]
    y = height
    for row, lines in rows:
        figure.text(0.012, (y - 0.30) / height, say(row.question), fontsize=13, color=INK, weight="bold")
        figure.text(0.012, (y - 0.54) / height, say(row.hint), fontsize=8.5, color=FAINT)
        y -= HEAD
        for line in lines:
            is_plot = line[0].look != "tile"
            tall, x = PLOT if is_plot else TILE, 0.0
            for panel in line:
                left, right = (0.42, 0.08) if is_plot and panel.look != "states" else (0.06, 0.06)
                left = 1.45 if panel.look == "states" else left
                wide = WIDTH * panel.width / 24
                bottom, top = (0.22, 0.22) if is_plot else (0.0, 0.0)
                box = (x + left, y - tall + bottom, wide - left - right, tall - bottom - top)
                axes = figure.add_axes((box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height))
                series = [one for query in panel.queries for one in ask(prometheus, query, seconds, say)]
                draw_panel(axes, panel, series, ticks, say)
                x += wide
            y -= tall + GAP
    figure.savefig(path, dpi=90, facecolor=PAPER)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128).save(path, optimize=True)  # a quarter of the bytes, and looks the same
    print(path)


async def main(docs: Path) -> None:
    """Live through it and draw it, into a folder."""
    rcParams["font.family"] = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP"]
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as redis:
        settings = {"cache": redis.url, "idle_unload": 15, "queue_limit": 12, "engines": 2, "cores": 2}
        with Gateway(Path(folder) / "state", **settings) as gateway:
            target = gateway.url.removeprefix("http://")
            with PrometheusServer(Path(folder) / "prometheus", [target], [RULES], instance=NAME) as prometheus:
                began = time.monotonic()
                await asyncio.sleep(5)
                await day(gateway, redis)
                seconds = time.monotonic() - began
                for name, say in PICTURES.items():
                    draw(prometheus, seconds, say, docs / name)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(folder))
