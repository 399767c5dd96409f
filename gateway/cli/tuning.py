"""Implementation of `samovar tune`: measure, print, draw and save the cost model of a machine."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine import (
    WIDEST,
    CostModel,
    EngineError,
    LearnedStep,
    LearningCostModel,
    bandwidth,
    groups,
    measure,
)
from gateway.cli import CommandError
from gateway.cli.curves import curves
from gateway.cli.figures import figure
from gateway.cli.idle_machine import wait_for_idle_machine
from gateway.cli.language import Phrases, is_chinese
from gateway.config.other_load import BUSY, OtherLoad
from gateway.config.settings import Settings
from gateway.models.catalogue import ModelNotAvailableError, find
from gateway.models.cost_models import LearnedFile, planned, save

SEQUENCES: Final = (1, 2, 3, 4, 6, 8, 12, 16)
TEXTS: Final = {
    "busy": (
        "other processes keep {cores:.1f} of {all} cores busy, which spoils the measurement; stop them, or add --force",
        "其他进程占用了 {all} 个核心中的 {cores:.1f} 个，此时测得的方案不准；请停止它们，或用 --force 强制测量",
    ),
    "disturbed": (
        "not saved: other processes kept {cores:.1f} cores busy meanwhile; measure again, or save with --force",
        "未保存：测量期间其他进程占用了 {cores:.1f} 个核心；请重新测量，或用 --force 保存",
    ),
    "bandwidth": ("memory bandwidth: {rate} GB/s", "内存读取带宽：{rate} GB/s"),
    "measuring": ("measuring", "测量中"),
    "origin": ("{model} on {cores} cores, plan: {origin}", "{model}，{cores} 核，运行方案：{origin}"),
    "measured": ("measured", "实测"),
    "learned": ("learned", "运行中学得"),
    "measured and learned": ("measured, corrected by what was learned", "实测，并经运行中学习修正"),
    "assumed": (
        "estimated (run samovar tune to measure)",
        "估计（可运行 samovar tune 实测）",
    ),
    "steps": ("batch sizes", "批大小"),
    "lessons": (
        "Learned from {samples} steps, the last one {age} ago; serve saves this once a minute and when it stops:",
        "学自 {samples} 步，最近一步在 {age} 前；serve 每分钟及停止时保存：",
    ),
    "engines": ("engines × threads", "引擎 × 线程"),
    "step": ("step", "计算步"),
    "decode": ("decode {rows}", "解码 {rows}"),
    "prefill": ("prefill {rows}", "预填充 {rows}"),
    "milliseconds": ("ms", "毫秒"),
    "rate": ("tokens/s", "词元/秒"),
    "samples": ("samples", "样本数"),
    "age": ("age", "距今"),
    "days": ("{number} d", "{number} 天"),
    "hours": ("{number} h", "{number} 小时"),
    "minutes": ("{number} min", "{number} 分钟"),
    "seconds": ("{number} s", "{number} 秒"),
    "sequences": ("concurrent answers", "同时回答数"),
    "column": ("{engines} × {threads} threads", "{engines} × {threads} 线程"),
    "chosen": ("engines used", "所用引擎数"),
    "unit": (
        "Total tokens per second; the chosen number of engines in bold. Prefill: {rate} tokens per second.",
        "数字为合计词元/秒，粗体为所选引擎数。预填充速度为 {rate} 词元/秒。",
    ),
    "curves": (
        "Total tokens per second by concurrent answers; a digit is a number of engines, bold if chosen:",
        "合计词元/秒（纵轴）与同时回答数（横轴）；图中数字为引擎数，粗体为所选：",
    ),
    "saved": (
        "saved: {file}\n`samovar serve` uses it from the next start",
        "已保存：{file}\n下次运行 samovar serve 时生效",
    ),
    "drawn": ("drawn: {file}", "已绘图：{file}"),
    "stopped": ("stopped; nothing was saved", "已停止，未保存"),
}


def run(settings: Settings, options: Namespace) -> int:
    """Measure, print and save the cost model. Raises CommandError."""
    say = Phrases(TEXTS, chinese=is_chinese())
    console = Console(highlight=False, emoji=False)
    lessons: list[LearnedStep] = []
    if options.picture is not None and options.picture.suffix not in (".svg", ".png"):
        raise CommandError(f"--picture: {options.picture} must end in .svg or .png")
    try:
        entry = find(settings.model)
        if options.show:
            whole, disturbance = planned(entry.path, settings), 0.0
            lessons = LearnedFile.of(entry.path, settings).read()
        else:
            whole, disturbance = _measure_alone(say, console, entry.path, settings, options)
    except (ModelNotAvailableError, EngineError) as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        raise CommandError(say("stopped")) from None
    costs = LearningCostModel(whole.limited(settings.engine_count), lessons)  # as `samovar serve` does
    origin = say(_origin(costs))
    console.print(say("origin", model=entry.name, cores=settings.cores, origin=origin), style="bold")
    if not options.show:
        console.print(say("bandwidth", rate=figure(bandwidth(settings.cores) / 1e9)))
    _print(say, console, costs)
    if options.picture is not None:
        _draw(costs.model, f"{entry.name}, {settings.cores} cores", options.picture)
        console.print(say("drawn", file=options.picture))
    if not options.show:
        if disturbance >= BUSY and not options.force:
            raise CommandError(say("disturbed", cores=disturbance))
        console.print(say("saved", file=_saved(whole, entry.path, settings)), soft_wrap=True)
    return 0


def _print(say: Phrases, console: Console, costs: LearningCostModel) -> None:
    """Print the cost model as a table and as curves, and what was learned."""
    plan = costs.model
    console.print(_table(say, plan))
    rows, taken = max(plan.times[0].prefill.items())
    console.print(say("unit", rate=figure(rows / taken)))
    console.print()
    console.print(say("curves"))
    for line in curves(plan):
        console.print(line, no_wrap=True)
    if costs.samples:
        console.print()
        console.print(_lessons(say, costs))


def _origin(costs: LearningCostModel) -> str:
    """Return the key in TEXTS of where the plan comes from."""
    if costs.samples:
        return "measured and learned" if costs.measured else "learned"
    return "measured" if costs.measured else "assumed"


def _lessons(say: Phrases, costs: LearningCostModel) -> Group:
    """Build a table of what was learned, by engines, threads and step."""
    steps, now = costs.learned(), time.time()
    table = Table()
    table.add_column(say("engines"))
    table.add_column(say("step"))
    for name in ("milliseconds", "rate", "samples", "age"):
        table.add_column(say(name), justify="right")
    for step in steps:
        table.add_row(
            f"{step.engines} × {step.threads}",
            say(step.kind, rows=step.rows),
            figure(1000 * step.seconds),
            figure(step.rate),
            str(step.samples),
            _age(say, now - step.at),
        )
    latest = max(step.at for step in steps)
    return Group(say("lessons", samples=costs.samples, age=_age(say, now - latest)), table)


def _age(say: Phrases, seconds: float) -> str:
    """Return a duration in its largest unit, rounded down."""
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return say(unit, number=int(seconds // size))
    return say("seconds", number=max(0, int(seconds)))


def _saved(whole: CostModel, path: Path, settings: Settings) -> Path:
    """Save the cost model, and return its file. Raises CommandError."""
    try:
        return save(whole, path, settings)
    except OSError as error:
        raise CommandError(f"state_dir: the plan cannot be saved: {error.strerror}") from error


def _measure_alone(
    say: Phrases, console: Console, path: Path, settings: Settings, options: Namespace
) -> tuple[CostModel, float]:
    """Measure once other processes are idle; return the cost model, and the cores that others used meanwhile.

    Raises CommandError if they stay busy, except with `--force`.
    """
    if not options.force and (busy := wait_for_idle_machine(console, chinese=say.chinese)) >= BUSY:
        raise CommandError(say("busy", cores=busy, all=settings.cores))
    others = OtherLoad()
    return _measure(say, path, settings, options.budget), others.cores()


def _measure(say: Phrases, path: Path, settings: Settings, budget: float) -> CostModel:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(say("measuring"), total=1.0)

        def progress(share: float, what: str) -> None:
            bar.update(task, completed=share, description=f"{say('measuring')} {what:22}")

        # Measure as many engines as `auto` may use, whatever is set now: the cost model serves every later start.
        most = settings.model_copy(update={"engines": "auto"}).engine_count
        return measure(path, cores=settings.cores, engines=most, budget=budget, progress=progress)


def _table(say: Phrases, plan: CostModel) -> Table:
    """Build a table of tokens per second by concurrent answers and number of engines."""
    table = Table()
    table.add_column(say("sequences"), justify="right")
    for times in plan.times:
        table.add_column(say("column", engines=times.engines, threads=times.threads), justify="right")
    table.add_column(say("chosen"), justify="right")
    table.add_column(say("steps"))
    for sequences in SEQUENCES:
        chosen = plan.engines(sequences, working=0)
        rates = [(times.engines == chosen, plan.rate(times.engines, sequences)) for times in plan.times]
        cells = [f"[bold]{figure(rate)}[/]" if bold else figure(rate) for bold, rate in rates]
        table.add_row(str(sequences), *cells, str(chosen), " + ".join(map(str, _steps(plan, chosen, sequences))))
    return table


def _steps(plan: CostModel, engines: int, sequences: int) -> tuple[int, ...]:
    """Return the batch sizes of the engine with the most sequences."""
    times = next(times for times in plan.times if times.engines == engines)
    return groups(times, -(-sequences // engines))


def _draw(plan: CostModel, title: str, file: Path) -> None:
    """Draw the throughput curves with the chosen points to `file`. Raises CommandError."""
    from matplotlib.figure import Figure  # imported late: it takes a second

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for times, curve in zip(plan.times, _curves(plan), strict=True):
        axes.plot(range(1, WIDEST + 1), curve, marker=".", label=f"{times.engines} × {times.threads} threads")
    chosen = [plan.rate(plan.engines(n, working=0), n) for n in range(1, WIDEST + 1)]
    axes.plot(range(1, WIDEST + 1), chosen, "o", markersize=11, fillstyle="none", color="black", label="chosen")
    axes.set(title=title, xlabel="concurrent answers", ylabel="total tokens per second", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    try:
        figure.savefig(file)
    except OSError as error:
        raise CommandError(f"--picture: {file} cannot be written: {error.strerror}") from error


def _curves(plan: CostModel) -> Iterator[list[float]]:
    for times in plan.times:
        yield [plan.rate(times.engines, n) for n in range(1, WIDEST + 1)]
