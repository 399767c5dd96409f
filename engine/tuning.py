"""Measures a `Plan`: every width of step, alone and beside other engines that do the same at the same time."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, Self

import msgspec

from engine.errors import ModelLoadError
from engine.plan import Plan, Times
from engine.stopwatch import Kind, Question

DECODE: Final = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 32)
"""Kernels take rows by four: one more than a multiple is dear, and those between are on the line down from it."""
PREFILL: Final = (1, 8, 16, 32, 64, 128, 256)
PASSES: Final = 2


class Watch:
    """One stopwatch process."""

    def __init__(self, model: Path) -> None:
        """Start it; `wait` tells when it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.stopwatch", str(model)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"}, start_new_session=True,
        )  # fmt: skip
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both were asked for as pipes")
        self._questions: IO[str] = self._process.stdin
        self._answers: IO[str] = self._process.stdout

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, in the middle of a step if need be."""
        self._process.kill()
        self._process.communicate()

    def ask(self, question: Question) -> None:
        """Send a question; its answer is read by `wait`."""
        self._questions.write(msgspec.json.encode(question).decode() + "\n")
        self._questions.flush()

    def wait(self) -> str:
        """Its next line. Raises ModelLoadError when the process ended instead."""
        line = self._answers.readline()
        if not line:
            raise ModelLoadError("the model can't be loaded or computed with; see `samovar doctor`")
        return line.strip()


def measure(model: Path, *, cores: int, engines: int, budget: float, progress: Callable[[float, str], None]) -> Plan:
    """Measure for about `budget` seconds; `progress` hears the share done and what comes next.

    Threads in use never pass `cores`: processes that are not asked wait for their input. Raises ModelLoadError.
    """
    widths: list[tuple[Kind, int]] = [("decode", width) for width in DECODE]
    widths += [("prefill", width) for width in PREFILL]
    counts = range(1, min(engines, cores) + 1)
    total = len(counts) * len(widths) * PASSES
    each = 0.5 * budget / total  # the other half goes to loads, and to steps that take longer than this
    done, times = 0, []
    with ExitStack() as stack:
        watches: list[Watch] = []
        for count in counts:
            watches.append(stack.enter_context(Watch(model)))
            watches[-1].wait()
            threads = cores // count
            table: dict[Kind, dict[int, float]] = {"decode": {}, "prefill": {}}
            for kind, width in widths * PASSES:
                progress(done / total, f"{count} × {threads}: {kind} {width}")
                for watch in watches:
                    watch.ask(Question(kind, threads, width, each))
                taken = statistics.mean([float(watch.wait()) for watch in watches])
                # The lesser of the passes: whatever else ran on the machine only ever made a step longer.
                table[kind][width] = min(taken, table[kind].get(width, taken))
                done += 1
            times.append(Times(engines=count, threads=threads, decode=table["decode"], prefill=table["prefill"]))
    progress(1.0, "")
    return Plan(cores=cores, times=times, measured=True)
