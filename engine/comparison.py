"""Compares the speed of model files. They are timed alternately, so that other load affects all of them equally."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.cost_model import Kind
from engine.stopwatch import Question
from engine.tuning import Watch

BUDGET: Final = 0.5
"""Seconds of measurement per model, step type and round."""
STEPS: Final[tuple[tuple[Kind, int], ...]] = (("prefill", 256), ("decode", 1))


@dataclass(frozen=True)
class Rate:
    """Tokens per second: the median, minimum and maximum of all rounds."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Pace:
    """The speed of a model: of prefill in steps of 256 tokens, and of decoding one sequence."""

    prefill: Rate
    decode: Rate


def compare(models: Sequence[Path], *, threads: int, rounds: int, progress: Callable[[int, int], None]) -> list[Pace]:
    """Time `models` alternately, `rounds` times, on `threads` threads. `progress` gets the steps done and their total.

    Raises ModelLoadError.
    """
    total = rounds * len(STEPS) * len(models)
    rates: dict[tuple[Kind, int], list[float]] = {(kind, i): [] for kind, _ in STEPS for i in range(len(models))}
    with ExitStack() as stack:
        watches = [stack.enter_context(Watch(model)) for model in models]
        for watch in watches:
            watch.wait()
        turns = [(kind, width, i) for _ in range(rounds) for kind, width in STEPS for i in range(len(models))]
        for done, (kind, width, i) in enumerate(turns):
            progress(done, total)
            watches[i].ask(Question(kind, threads, width, BUDGET))
            rates[kind, i].append(width / float(watches[i].wait()))
    progress(total, total)
    rated = {key: Rate(statistics.median(values), min(values), max(values)) for key, values in rates.items()}
    return [Pace(rated["prefill", i], rated["decode", i]) for i in range(len(models))]
