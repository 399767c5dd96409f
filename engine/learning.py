"""A cost model that follows the machine: every computed step corrects the expected times of the steps to come.

The seconds of a step are estimated as those of a prior (measured by `samovar tune`, or guessed) times two factors:

- the *correction* of a step width at a number of engines, learned slowly and kept: what this processor, its memory and
  llama.cpp's kernels do well. Widths that were not observed are corrected like their neighbours;
- a *deviation*, which follows changes within seconds: a neighbour takes half of the bandwidth, a laptop throttles.
  That of a number of engines that is not used may have passed meanwhile, which makes it worth another try.

Both are decayed averages of logarithms, in which one outlier counts little.

Corrections outlive the process as `LearnedStep`s. A restored one counts like a few steps, fewer the older it is, so
that the steps of the new process soon decide.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from engine.cost_model import BATCH, WIDEST, CostModel, Kind, StepTimes, seconds

FAST_SECONDS: Final = 1.5
"""Seconds of steps after which a deviation has followed two thirds of a change."""
SLOW_SECONDS: Final = 300.0
"""Seconds of steps after which a correction has followed two thirds of a change."""
FORGOTTEN: Final = 30.0
"""Seconds after which two thirds of the deviation of an unused number of engines may be replaced by the machine's."""
MOST_CHANGE: Final = 0.7
"""Maximum change of a logarithm by one step: a step that was interrupted for seconds counts as twice as long."""
REFRESH_SECONDS: Final = 1.0
"""Minimum seconds between two new versions of the cost model."""
NOISE: Final = 0.15
"""Deviation that is no change of the machine, but chance: it would be mistaken for a property of a width."""
KNOWN: Final = 3
"""Steps of a width from which on it counts as known."""
FIRST: Final = 9
"""Steps of a width of which the median counts."""
OUTDATED: Final = 600.0
"""Seconds without a step after which a width does not count as known any more."""
RESTORED: Final = 4
"""Steps that a correction of an earlier run counts for. Five new steps are the majority of FIRST."""
HALF_LIFE: Final = 7 * 86_400.0
"""Seconds in which RESTORED halves: the system, its neighbours or the firmware may have changed meanwhile."""
LONGEST: Final = 3600.0
"""Maximum seconds of a step: a machine that was suspended is no slower than that."""
HOPE: Final = 0.4
"""Factor on the seconds of unknown widths in the optimistic cost model, which decides what is worth trying."""
_DENSE: Final = (*range(1, WIDEST + 1), 2 * WIDEST)
"""The decode widths of a learned cost model: all of them, so that looking one up needs no interpolation."""


class LearnedStep(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned about one step width: the form in which it is saved, shown and given to new engines."""

    engines: Annotated[int, msgspec.Meta(ge=1)]
    threads: Annotated[int, msgspec.Meta(ge=1)]
    kind: Kind
    rows: Annotated[int, msgspec.Meta(ge=1, le=BATCH)]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST)]
    """Usual duration of the step."""
    samples: Annotated[int, msgspec.Meta(ge=1)]
    """Number of observed steps, including those of earlier runs."""
    at: Annotated[float, msgspec.Meta(ge=0)]
    """When the last one was observed, in seconds since the epoch."""

    @property
    def rate(self) -> float:
        """Tokens per second of one engine."""
        return self.rows / self.seconds


@dataclass
class _Deviation:
    """A decayed average of the logarithms of factors."""

    value: float = 0.0
    steps: int = 0
    at: float = -math.inf
    """Time of the last step."""

    def move(self, residual: float, rate: float, now: float) -> None:
        """Move the value by a share `rate` of `residual`."""
        self.value += rate * max(-MOST_CHANGE, min(MOST_CHANGE, residual))
        self.steps += 1
        self.at = now


class _Correction:
    """The logarithm of a width's factor: the median of its first steps, and from then on a decayed average."""

    def __init__(self) -> None:
        self.value = 0.0
        self.samples = 0
        """Number of observed steps, including those of earlier runs."""
        self.at = -math.inf
        """Time of the last step."""
        self._outdated_at = -math.inf
        self._first: list[float] = []

    def restore(self, factor: float, samples: int, age: float, now: float) -> None:
        """Start with the factor that an earlier run learned from `samples` steps, the last one `age` seconds ago."""
        trust = min(samples, math.ceil(RESTORED * 0.5 ** (age / HALF_LIFE)))
        self.value, self.samples, self.at = factor, samples, now - age
        self._first = [factor] * trust
        self._outdated_at = now + OUTDATED

    def add(self, factor: float, rate: float, now: float) -> None:
        """Learn from one more step."""
        if len(self._first) < FIRST:
            self._first.append(factor)
            self.value = statistics.median(self._first)
        else:
            self.value += rate * max(-MOST_CHANGE, min(MOST_CHANGE, factor - self.value))
        self.samples += 1
        self.at = now
        self._outdated_at = now + OUTDATED

    def known(self, now: float) -> bool:
        """Return whether enough steps were observed, the last one not long ago."""
        return len(self._first) >= KNOWN and now < self._outdated_at


class _Table:
    """The learned factors of one kind of step at one number of engines."""

    def __init__(self) -> None:
        self.deviation = _Deviation()
        self.corrections: dict[int, _Correction] = {}
        """By step width."""

    def correction(self, width: int) -> float:
        """Return the logarithm of the factor of `width`, interpolated between the widths that were observed.

        At least one width was.
        """
        below = max((known for known in self.corrections if known <= width), default=min(self.corrections))
        above = min((known for known in self.corrections if known >= width), default=below)
        low, high = self.corrections[below].value, self.corrections[above].value
        return low if below >= above else low + (high - low) * (width - below) / (above - below)

    @property
    def steps(self) -> int:
        """Number of observed steps of this run."""
        return self.deviation.steps


class LearningCostModel:
    """Learns the step times of one model on one machine."""

    def __init__(
        self,
        prior: CostModel,
        learned: Iterable[LearnedStep] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Start from `prior`, and from what was `learned` with the same model on this machine.

        `clock` returns seconds, `wall` seconds since the epoch.
        """
        self._prior = prior
        self._clock = clock
        self._wall = wall
        self._tables: dict[tuple[int, Kind], _Table] = {
            (times.engines, kind): _Table() for times in prior.times for kind in _KINDS
        }
        self._machine: dict[Kind, _Deviation] = {kind: _Deviation() for kind in _KINDS}
        """The deviation of the machine as a whole, whatever the number of engines."""
        self._model = self._optimistic = prior
        self._made_at = -math.inf
        self._changed = not prior.measured
        for step in learned:
            self._restore(step)

    @property
    def model(self) -> CostModel:
        """The cost model as of now. It is replaced by a new one when steps were observed, once a second at most."""
        self._refresh()
        return self._model

    @property
    def optimistic(self) -> CostModel:
        """The cost model as of now, as it may be at best: what it does not know, or not any more, may be faster."""
        self._refresh()
        return self._optimistic

    def _refresh(self) -> None:
        now = self._clock()
        if self._changed and now - self._made_at >= REFRESH_SECONDS:
            self._model, self._optimistic = self._learned(now, optimistic=False), self._learned(now, optimistic=True)
            self._made_at, self._changed = now, False

    @property
    def samples(self) -> int:
        """The number of observed steps, including those of earlier runs."""
        return sum(own.samples for table in self._tables.values() for own in table.corrections.values())

    @property
    def measured(self) -> bool:
        """Whether the prior was measured on this machine."""
        return self._prior.measured

    def learned(self) -> list[LearnedStep]:
        """Return everything that was learned, by number of engines, kind and width.

        At most WIDEST + 2 widths of decode steps, and the prior's widths of prefill steps, for each number of engines.
        """
        now, wall = self._clock(), self._wall()
        return [
            LearnedStep(
                engines=times.engines,
                threads=times.threads,
                kind=kind,
                rows=width,
                seconds=min(LONGEST, seconds(_of(times, kind), width) * math.exp(own.value)),
                samples=own.samples,
                at=max(0.0, wall - (now - own.at)),
            )
            for times in self._prior.times
            for kind in _KINDS
            for width, own in sorted(self._tables[times.engines, kind].corrections.items())
        ]

    def _restore(self, step: LearnedStep) -> None:
        times = next((t for t in self._prior.times if (t.engines, t.threads) == (step.engines, step.threads)), None)
        if times is None:
            return
        table, now = self._tables[step.engines, step.kind], self._clock()
        factor = math.log(step.seconds / seconds(_of(times, step.kind), step.rows))
        own = table.corrections.setdefault(_learned_width(times, step.kind, step.rows), _Correction())
        own.restore(factor, step.samples, max(0.0, self._wall() - step.at), now)
        if own.known(now):
            table.deviation.at = now
        self._changed = True

    def observe(self, threads: int, kind: Kind, width: int, taken: float, *, working: int = 0) -> None:
        """Learn from a step of `width` rows that took `taken` seconds with `threads` threads.

        `working` is the number of engines that worked; 0 if unknown. Engines can have one thread each at two numbers.
        """
        now = self._clock()
        alike = (times for times in self._prior.times if (times.engines, times.threads) == (working, threads))
        times = next(alike, None) or self._prior.at(threads)
        table, machine = self._tables[times.engines, kind], self._machine[kind]
        factor = math.log(max(taken, 1e-6) / seconds(_of(times, kind), width))
        deviation = table.deviation.value
        own = table.corrections.setdefault(_learned_width(times, kind, width), _Correction())
        own.add(factor - _significant(deviation), 1 - math.exp(-taken / SLOW_SECONDS), now)
        rest, fast = factor - own.value, 1 - math.exp(-taken / FAST_SECONDS)
        table.deviation.move(rest - deviation, fast, now)
        machine.move(rest - machine.value, fast, now)
        self._changed = True

    def _knows(self, engines: int, width: int, now: float) -> bool:
        own = self._tables[engines, "decode"].corrections.get(width)
        return self._prior.measured or (own is not None and own.known(now))

    @property
    def slowness(self) -> float:
        """How much longer decode steps take at present than usually, as a logarithm: the deviation of the machine."""
        return self._machine["decode"].value

    def observed_at(self, engines: int) -> float:
        """Return when a decode step with this number of engines was last observed, in seconds of the clock.

        Steps of an earlier run that are still trusted count as observed at the start.
        """
        return self._tables[engines, "decode"].deviation.at

    def _deviation(self, table: _Table, kind: Kind) -> float:
        """Return the last deviation of a number of engines, or the machine's if there is none."""
        return (table.deviation if table.steps else self._machine[kind]).value

    def _hoped(self, deviation: float, table: _Table, kind: Kind, now: float) -> float:
        """Return what may be left of a deviation, if its cause has gone meanwhile."""
        machine = self._machine[kind].value
        return min(deviation, machine + (deviation - machine) * math.exp((table.deviation.at - now) / FORGOTTEN))

    def _correction(self, engines: int, kind: Kind, width: int) -> float:
        """Return the logarithm of the factor of a width; of a number of engines without any step, the others' mean."""
        table = self._tables[engines, kind]
        if table.corrections:
            return table.correction(width)
        for kinds in ((kind,), _KINDS):
            seen = [other for (_, its_kind), other in self._tables.items() if its_kind in kinds and other.corrections]
            if seen:
                return statistics.fmean(other.correction(width) for other in seen)
        return 0.0

    def _learned(self, now: float, *, optimistic: bool) -> CostModel:
        def factor(engines: int, kind: Kind, width: int) -> float:
            table, hope = self._tables[engines, kind], 1.0
            deviation = self._deviation(table, kind)
            if optimistic:
                deviation = self._hoped(deviation, table, kind, now)
                hope = HOPE if kind == "decode" and not self._knows(engines, width, now) else 1.0
            return hope * math.exp(self._correction(engines, kind, width) + _significant(deviation))

        times = [
            StepTimes(
                engines=each.engines,
                threads=each.threads,
                decode={w: seconds(each.decode, w) * factor(each.engines, "decode", w) for w in _DENSE},
                prefill={w: taken * factor(each.engines, "prefill", w) for w, taken in each.prefill.items()},
            )
            for each in self._prior.times
        ]
        return msgspec.structs.replace(self._prior, times=times)


_KINDS: Final[tuple[Kind, ...]] = ("decode", "prefill")


def _learned_width(times: StepTimes, kind: Kind, width: int) -> int:
    """Return the width under which a step is learned: of prefill steps, the nearest one in the cost model.

    Prompts have any length, and neighbouring widths take the same time per token.
    """
    if kind == "decode" or width in times.prefill:
        return width
    return min(times.prefill, key=lambda rows: abs(math.log(rows / width)))


def _significant(deviation: float) -> float:
    """Return what a deviation has beyond NOISE."""
    return math.copysign(max(0.0, abs(deviation) - NOISE), deviation)


def _of(times: StepTimes, kind: Kind) -> dict[int, float]:
    return times.decode if kind == "decode" else times.prefill
