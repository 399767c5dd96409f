"""Measures a `CostModel`: every width of step, alone and beside other engines that do the same at the same time."""

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
from engine.cost_model import CostModel, StepTimes, heuristic, seconds
from engine.errors import ModelLoadError
from engine.modelfile import model_size
from engine.stopwatch import Kind, Question

WIDTHS: Final[tuple[tuple[Kind, int], ...]] = (
    ("decode", 1), ("prefill", 64), ("decode", 4), ("decode", 8), ("decode", 2), ("decode", 16),
    ("prefill", 16), ("prefill", 256), ("decode", 3), ("decode", 12), ("decode", 5), ("decode", 9), ("decode", 6),
    ("prefill", 1), ("prefill", 8), ("prefill", 32), ("prefill", 128), ("decode", 13), ("decode", 7),
)  # fmt: skip
"""What decides most comes first, and the first always. Kernels take rows by four: one more than a multiple is dear, and
those between are on the line down from it."""
PASSES: Final = 2


class Watch:
    """One stopwatch process."""

    def __init__(self, model: Path) -> None:
        """Start it; `wait` tells when it is ready."""
        self._process = subprocess.Popen(
            module_command("engine.stopwatch", str(model)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment(), start_new_session=True,
        )  # fmt: skip
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both were asked for as pipes")
        self._questions: IO[str] = self._process.stdin
        self._answers: IO[str] = self._process.stdout
        self._loaded = False

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, in the middle of a step if need be."""
        self._process.kill()
        self._process.communicate()

    def ask(self, question: Question) -> None:
        """Send a question; its answer is read by `wait`. Raises ModelLoadError when the process has ended."""
        try:
            self._questions.write(msgspec.json.encode(question).decode() + "\n")
            self._questions.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def wait(self) -> str:
        """Its next line. Raises ModelLoadError when the process ended instead."""
        line = self._answers.readline()
        if not line:
            raise self._ended()
        self._loaded = True
        return line.strip()

    def _ended(self) -> ModelLoadError:
        """Why there is no answer: its pipes are closed, so it has ended or is about to."""
        code = self._process.wait()
        how = f" ({signal.Signals(-code).name})" if code < 0 else ""
        if not self._loaded:
            return ModelLoadError(f"the model can't be loaded{how}; see `samovar doctor`")
        return ModelLoadError(
            f"the process that measures ended in the middle of it{how}: memory may be short; see `samovar doctor`"
        )


class _Budget:
    """Seconds to measure in; what passes until a model is loaded and warm is not of them."""

    def __init__(self, whole: float, clock: Callable[[], float]) -> None:
        self.whole = whole
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
    """Measure for about `budget` seconds beside loads; `progress` hears the share of them spent and what comes next.

    What there is no time for follows from what was measured. Threads in use never pass `cores`: processes that are not
    asked wait for their input. Raises ModelLoadError.
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
                # The first step of all computes a history, and brings the weights in.
                watches[-1].ask(Question("decode", guess.threads, 1, 0.0))
                watches[-1].wait()
            # Of what is left, in proportion to the count: the more engines, the fewer threads and the longer a step.
            ends = span.spent + (budget - span.spent) * count / sum(counts[count - 1 :])
            times.append(_measure(watches, guess, span, ends, progress))
    progress(1.0, "")
    return CostModel(cores=cores, times=times, measured=True)


def _measure(
    watches: list[Watch], guess: StepTimes, budget: _Budget, ends: float, progress: Callable[[float, str], None]
) -> StepTimes:
    """All widths in all `watches` at once, until so much of the budget is spent."""
    table: dict[Kind, dict[int, float]] = {"decode": {}, "prefill": {}}
    questions = WIDTHS * PASSES
    for number, (kind, width) in enumerate(questions):
        left = ends - budget.spent
        if number > 0 and seconds(_whole(table, guess)[kind], width) > left:
            continue  # a narrower one may still have its time
        progress(min(1.0, budget.spent / budget.whole), f"{guess.engines} × {guess.threads}: {kind} {width}")
        for watch in watches:
            watch.ask(Question(kind, guess.threads, width, max(0.0, left) / (len(questions) - number)))
        taken = statistics.mean([float(watch.wait()) for watch in watches])
        # The lesser of the passes: whatever else ran on the machine only ever made a step longer.
        table[kind][width] = min(taken, table[kind].get(width, taken))
    whole = _whole(table, guess)
    return StepTimes(engines=guess.engines, threads=guess.threads, decode=whole["decode"], prefill=whole["prefill"])


def _whole(table: Mapping[Kind, dict[int, float]], guess: StepTimes) -> dict[Kind, dict[int, float]]:
    """What was measured, with what no measured one is beside as `guess` has it, in proportion to the one next to it."""
    decode = table["decode"]
    prefill = table["prefill"] or {1: decode[1]}
    return {"decode": _completed(decode, guess.decode), "prefill": _completed(prefill, guess.prefill)}


def _completed(measured: Mapping[int, float], guess: Mapping[int, float]) -> dict[int, float]:
    """Those that lie between two measured ones are left to `seconds`."""
    least, most = min(measured), max(measured)
    whole = dict(measured)
    for width in guess:
        if not least <= width <= most:
            nearest = least if width < least else most
            whole[width] = guess[width] * measured[nearest] / seconds(guess, nearest)
    return dict(sorted(whole.items()))
