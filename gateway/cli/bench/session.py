"""Implementation of `samovar bench`: start a gateway, measure it as a client, and compare with the write-up."""

from __future__ import annotations

import asyncio
import datetime
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from engine import EngineError, bandwidth, model_size
from gateway.cli import CommandError
from gateway.cli.bench import report, tables
from gateway.cli.bench.gateway import BenchError, MeasuredGateway
from gateway.cli.bench.measuring import SHAPES, Measuring, Step
from gateway.cli.bench.results import FULL, QUICK, Conditions, Effort, Results
from gateway.cli.language import Phrases, is_chinese
from gateway.cli.launcher import LaunchError
from gateway.config.machine import processor, total_memory
from gateway.config.other_load import BUSY, OtherLoad
from gateway.config.settings import Settings
from gateway.models.catalogue import Entry, ModelNotAvailableError, find
from gateway.models.cost_models import planned

MOST_SECONDS: Final = 1800
"""Timeout of the whole benchmark."""
TEXTS: Final = {
    **tables.TEXTS,
    "measuring_memory": ("memory", "内存"),
    "measuring_start": ("start-up", "启动"),
    "measuring_latency": ("latency", "延迟"),
    "measuring_load": ("load", "负载"),
    "stopped": ("stopped; nothing was written", "已停止，未写入任何文件"),
    "too_long": (
        "not finished after {minutes} minutes; use --quick to measure less",
        "{minutes} 分钟仍未完成；可用 --quick 少测一些",
    ),
    "unwritable": ("--output: {folder} is not writable: {reason}", "--output：{folder} 不可写：{reason}"),
    "written": ("written: {files}", "已写入：{files}"),
}


def run(settings: Settings, *, quick: bool, output: Path | None) -> int:
    """Measure, print and write the results. Raises CommandError."""
    say = Phrases(TEXTS, chinese=is_chinese())
    if output is not None:
        _check_folder(output, say)
    try:
        entry = find(settings.model)
        with _interrupt_on_sigterm():
            results = _measured(entry, settings, QUICK if quick else FULL, say)
    except (ModelNotAvailableError, EngineError, BenchError, LaunchError) as error:
        raise CommandError(str(error)) from error
    except TimeoutError as error:
        raise CommandError(say("too_long", minutes=MOST_SECONDS // 60)) from error
    except KeyboardInterrupt:
        raise CommandError(say("stopped")) from None
    _show(results, say)
    if output is not None:
        try:
            files = report.write(results, output, say)
        except OSError as error:
            raise CommandError(say("unwritable", folder=output, reason=error.strerror)) from error
        print(say("written", files=" ".join(map(str, files))))
    return 0


def _measured(entry: Entry, settings: Settings, effort: Effort, say: Phrases) -> Results:
    """Run all measurements. Raises BenchError, LaunchError, ModelLoadError and TimeoutError."""
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    totals = {
        "memory": effort.rounds + 2,
        "start": effort.starts,
        "latency": effort.rounds * len(SHAPES),
        "load": effort.rounds * len(effort.load),
    }
    with (
        tempfile.TemporaryDirectory(prefix="samovar-bench-") as folder,
        Progress(*columns, console=Console(stderr=True), transient=True) as bars,
    ):
        tasks = {
            name: bars.add_task(say(f"measuring_{name}"), total=total, start=False) for name, total in totals.items()
        }

        def step(name: str) -> Step:
            bars.start_task(tasks[name])
            return lambda: bars.advance(tasks[name])

        others = OtherLoad()

        async def measure() -> Results:
            gateway = MeasuredGateway(entry, settings, Path(folder))
            measuring = Measuring(gateway, entry.path, effort)
            async with asyncio.timeout(MOST_SECONDS):
                memory = await measuring.memory(step("memory"))
                starts = await measuring.starts(step("start"))
                with gateway.running():
                    latency = await measuring.latency(step("latency"))
                    load = await measuring.load(step("load"))
            return Results(_conditions(entry, settings, others.cores()), starts, memory, latency, load)

        return asyncio.run(measure())


def _conditions(entry: Entry, settings: Settings, others: float) -> Conditions:
    return Conditions(
        model=entry.name,
        file_bytes=model_size(entry.path),
        processor=processor(),
        cores=settings.cores,
        memory_bytes=total_memory(),
        samovar=version("samovar"),
        llama_cpp_python=version("llama-cpp-python"),
        planned=planned(entry.path, settings).measured,
        date=datetime.datetime.now().astimezone().date().isoformat(),
        bandwidth=bandwidth(settings.cores),
        others=others,
    )


def _check_folder(folder: Path, say: Phrases) -> None:
    """Raise CommandError now instead of after minutes of measuring, if `folder` is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(say("unwritable", folder=folder, reason=error.strerror)) from error


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that started processes are stopped."""
    before = signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(results: Results, say: Phrases) -> None:
    console = Console(highlight=False, emoji=False, markup=False, width=None if sys.stdout.isatty() else 120)
    console.print(say("title"), style="bold")
    console.print(tables.conditions(results, say))
    console.print(tables.explanation(results, say))
    if results.conditions.others >= BUSY:
        console.print(say("busy", cores=results.conditions.others), style="yellow")
    for content in tables.tables(results, say):
        table = Table(
            title=content.title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
        )
        for number, name in enumerate(content.columns):
            table.add_column(name, justify="right" if number else "left")
        for row in content.rows:
            table.add_row(*row)
        console.print()
        console.print(table)
