"""Decides how many engines work, and tries other numbers while requests run steadily."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from engine import LearningCostModel

TRIAL_SECONDS: Final = 3.0
"""Seconds for which another number of engines is tried, moves included."""
TRIAL_SHARE: Final = 0.02
"""Maximum share of the tokens that trials may cost."""
MOST_LOSS: Final = 3.0
"""Seconds of work that trials may cost at once: available at the start, and saved up again at TRIAL_SHARE."""
RECOVERY: Final = 5.0
"""Seconds without a step after which a number of engines that was slow is tried again when the machine is faster."""
MOVES_COST: Final = 0.3
"""Seconds of work that the moves of a trial cost."""
FASTER: Final = 0.15
"""Decrease of the logarithm of step times that means that the machine has become faster; less is chance."""
STALE: Final = 30.0
"""Seconds without a step after which what is known about a number of engines may have changed."""
HOPE: Final = 1.3
"""A number of engines that was seen before is tried again if its expected throughput, times this factor, is above the
present one."""


class _Held(NamedTuple):
    """A number of engines that is kept for a while."""

    engines: int
    load: int
    until: float
    before: int | None
    """The number before, if this is a trial."""


class EngineCount:
    """The number of engines that should work.

    Throughput decides, as learned. A number of engines that may be better than it is known to be is tried when requests
    run anyway: for TRIAL_SECONDS, at a loss of at most TRIAL_SHARE. A changed load ends a trial.
    """

    def __init__(self, costs: LearningCostModel, clock: Callable[[], float]) -> None:
        """Decide by `costs`. `clock` returns seconds."""
        self._costs = costs
        self._clock = clock
        self._held: _Held | None = None
        self._allowance = MOST_LOSS
        """Seconds of work that trials may cost now."""
        self._steady_at = clock()
        """When `consider` was called last."""
        self._failed: dict[int, int] = {}
        """Consecutive trials of a number of engines that were no gain."""
        self._slowness: dict[int, float] = {}
        """The machine's slowness when a number of engines was used last."""

    @property
    def trying(self) -> bool:
        """Whether a number of engines is being tried."""
        return self._held is not None and self._held.before is not None

    def wanted(self, load: int, *, working: int) -> int:
        """Return how many engines should work on `load` requests while `working` engines do."""
        held, now = self._held, self._clock()
        if held is not None and held.load == load and now >= held.until and held.before is not None:
            held = self._held = self._judged(held, held.before, now)
        if held is None or held.load != load or now >= held.until:
            self._held = None
            return self._costs.model.engines(load, working=working)
        return held.engines

    def _judged(self, trial: _Held, before: int, now: float) -> _Held:
        """Return the better number after a trial, to be kept until the requests have moved."""
        model = self._costs.model
        gain = model.rate(trial.engines, trial.load) / model.rate(before, trial.load)
        self._allowance -= TRIAL_SECONDS * max(0.0, 1 - gain) + MOVES_COST
        self._failed[trial.engines] = 0 if gain > 1 else self._failed.get(trial.engines, 0) + 1
        return _Held(trial.engines if gain > 1 else before, trial.load, now + TRIAL_SECONDS, None)

    def consider(self, load: int, *, working: int, loaded: int) -> None:
        """Start a trial of at most `loaded` engines if it may be a gain.

        Called while `load` requests run steadily on `working` engines.
        """
        now = self._clock()
        self._allowance = min(MOST_LOSS, self._allowance + min(1.0, now - self._steady_at) * TRIAL_SHARE)
        self._steady_at = now
        self._slowness[working] = self._costs.slowness
        model = self._costs.model
        if self._held is not None or self._allowance < MOST_LOSS / 2:
            return
        hopeful = self._costs.optimistic
        counts = [times.engines for times in model.times if times.engines <= min(load, loaded)]
        rates = {engines: hopeful.rate(engines, load) for engines in counts}
        present = model.rate(working, load) if working in rates else math.inf
        worth = {
            engines: rate
            for engines, rate in rates.items()
            if engines != working and self._worth_a_trial(engines, now, rate / present)
        }
        if worth:
            engines = max(worth, key=lambda count: worth[count])
            self._held = _Held(engines, load, now + TRIAL_SECONDS, working)

    def _worth_a_trial(self, engines: int, now: float, gain: float) -> bool:
        """Return whether a number of engines with an expected `gain` may be better than it seems."""
        age = now - self._costs.observed_at(engines)
        if not self._costs.model.measured:
            if age == math.inf:
                return True
            gain *= HOPE
        if self._slowness.get(engines, -math.inf) - self._costs.slowness > FASTER:
            return age > RECOVERY  # what slowed the machine has gone, or become less
        return gain > 1 and age > STALE * 2 ** min(6, self._failed.get(engines, 0))
