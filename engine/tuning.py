"""Measures a `CostModel`: steps of every width, in one engine and in several engines at the same time."""

from __future__ import annotations

import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final, Self

import msgspec

from engine.child import environment, module_command
from engine.cost_model import CostModel, Kind, StepTimes, heuristic, seconds
from engine.errors import ModelLoadError
from engine.modelfile import model_size
from engine.stopwatch import Question

WIDTHS: Final[tuple[tuple[Kind, int], ...]] = (
    ("decode", 1), ("prefill", 64), ("decode", 4), ("decode", 8), ("decode", 2), ("decode", 16),
    ("prefill", 16), ("prefill", 256), ("decode", 3), ("decode", 12), ("decode", 5), ("decode", 9), ("decode", 6),
    ("prefill", 1), ("prefill", 8), ("prefill", 32), ("prefill", 128), ("decode", 13), ("decode", 7),
)  # fmt: skip
"""Measured steps in order of importance; the first is always measured. Kernels process rows in groups of four, so one
row more than a multiple of four is expensive, and the widths up to the next multiple lie on a line that falls from
there."""
PASSES: Final = 2
"""Passes over all widths."""


class Watch:
    """The handle of one stopwatch process."""

    def __init__(self, model: Path) -> None:
        """Start the process. The first `wait` returns when it has loaded the model."""
        self._process = subprocess.Popen(
            module_command("engine.stopwatch", str(model)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment(), start_new_session=True,
        )  # fmt: skip
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("stdin and stdout must be pipes")
        self._questions: IO[str] = self._process.stdin
        self._answers: IO[str] = self._process.stdout
        self._loaded = False

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process, even during a step."""
        self._process.kill()
        self._process.communicate()

    def ask(self, question: Question) -> None:
        """Send a question, whose answer `wait` reads. Raises ModelLoadError if the process has ended."""
        try:
            self._questions.write(msgspec.json.encode(question).decode() + "\n")
            self._questions.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def wait(self) -> str:
        """Return the next line of the process. Raises ModelLoadError if the process has ended."""
        line = self._answers.readline()
        if not line:
            raise self._ended()
        self._loaded = True
        return line.strip()

    def _ended(self) -> ModelLoadError:
        """Return why the process ended. Its pipes are closed, so it has ended or is about to."""
        code = self._process.wait()
        how = f" ({signal.Signals(-code).name})" if code < 0 else ""
        if not self._loaded:
            return ModelLoadError(f"the model can't be loaded{how}; see `samovar doctor`")
        return ModelLoadError(
            f"the measuring process ended during a measurement{how}: memory may be short; see `samovar doctor`"
        )


class _Budget:
    """The seconds available for measurements, not counting the loading and warming up of models."""

    def __init__(self, total: float, clock: Callable[[], float]) -> None:
        self.total = total
        self._clock = clock
        self._began = clock()

    @property
    def spent(self) -> float:
        return self._clock() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = self._clock()
        yield
        self._began += self._clock() - before


def measure(
    model: Path,
    *,
    cores: int,
    engines: int,
    budget: float,
    progress: Callable[[float, str], None],
    clock: Callable[[], float] = time.monotonic,
    watch: Callable[[Path], Watch] = Watch,
) -> CostModel:
    """Measure for about `budget` seconds plus load times, and return the cost model. Raises ModelLoadError.

    `progress` gets the spent share of the budget and the name of the next measurement. Widths for which no time is left
    are extrapolated. No more than `cores` threads compute at once: processes without a question wait for input.
    """
    counts = range(1, min(engines, cores) + 1)
    guesses = heuristic(model_size(model), cores, len(counts)).times
    span = _Budget(budget, clock)
    times = []
    with ExitStack() as stack:
        watches: list[Watch] = []
        for count, guess in zip(counts, guesses, strict=True):
            with span.paused():
                watches.append(stack.enter_context(watch(model)))
                watches[-1].wait()
                # The very first step computes the history and reads the weights from disk.
                watches[-1].ask(Question("decode", guess.threads, 1, 0.0))
                watches[-1].wait()
            # The remaining time is divided in proportion to `count`: more engines have fewer threads and longer steps.
            ends = span.spent + (budget - span.spent) * count / sum(counts[count - 1 :])
            times.append(_measure(watches, guess, span, ends, progress))
    progress(1.0, "")
    return CostModel(cores=cores, times=times, measured=True)


def _measure(
    watches: list[Watch], guess: StepTimes, budget: _Budget, ends: float, progress: Callable[[float, str], None]
) -> StepTimes:
    """Measure all widths in all `watches` at once, until `ends` seconds of the budget are spent."""
    table: dict[Kind, dict[int, float]] = {"decode": {}, "prefill": {}}
    questions = WIDTHS * PASSES
    for number, (kind, width) in enumerate(questions):
        left = ends - budget.spent
        if number > 0 and seconds(_extrapolated(table, guess)[kind], width) > left:
            continue  # there may still be time for a narrower step
        progress(min(1.0, budget.spent / budget.total), f"{guess.engines} × {guess.threads}: {kind} {width}")
        for watch in watches:
            watch.ask(Question(kind, guess.threads, width, max(0.0, left) / (len(questions) - number)))
        taken = statistics.mean([float(watch.wait()) for watch in watches])
        # The minimum of the passes: other load on the machine can only make a step longer.
        table[kind][width] = min(taken, table[kind].get(width, taken))
    times = _extrapolated(table, guess)
    return StepTimes(engines=guess.engines, threads=guess.threads, decode=times["decode"], prefill=times["prefill"])


def _extrapolated(table: Mapping[Kind, dict[int, float]], guess: StepTimes) -> dict[Kind, dict[int, float]]:
    """Return the measured times, extrapolated by `guess` to the widths that were not measured."""
    decode = table["decode"]
    prefill = table["prefill"] or {1: decode[1]}
    return {"decode": _completed(decode, guess.decode), "prefill": _completed(prefill, guess.prefill)}


def _completed(measured: Mapping[int, float], guess: Mapping[int, float]) -> dict[int, float]:
    """Add the widths outside the measured range: the time of the nearest measured width, scaled as in `guess`.

    Widths between two measured ones are left out, because `seconds` interpolates them.
    """
    least, most = min(measured), max(measured)
    times = dict(measured)
    for width in guess:
        if not least <= width <= most:
            nearest = least if width < least else most
            times[width] = guess[width] * measured[nearest] / seconds(guess, nearest)
    return dict(sorted(times.items()))
