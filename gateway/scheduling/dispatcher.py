"""Assigns requests to engines, on arrival and while they run.

Few requests are spread over engines with one or two threads each; many requests share wide steps of one engine. The
cost model determines how many engines work. Among these, a request goes to the engine where it finishes first: usually
its home, the engine that still holds its conversation's KV, unless waiting there costs more than moving. A long prompt
goes to an engine where no response is being streamed, or from which the streaming requests can be moved.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from engine import WIDEST, CostModel, Engine, State, StepTimes, round_seconds
from gateway.scheduling.placement import Demand

HOMES: Final = 4096
"""Maximum responses whose home is remembered. An engine holds far fewer conversations."""
LONG: Final = 64
"""New prompt tokens above which a prompt delays responses streamed by the same engine."""
ANSWER: Final = 128
"""Assumed answer length in tokens, used to compare placement costs."""
LOAD: Final = 4.0
"""Cost in seconds of loading an engine. Loading takes about one second, but the user sees no progress meanwhile."""
FETCH: Final = 2e-5
"""Seconds per token to transfer KV from one engine to another through the store."""
REST: Final = 1.0
"""Minimum seconds that a request stays on an engine before it is moved."""
ROUND: Final = 0.5
"""Seconds between two rebalancing rounds."""
LULL: Final = 2.0
"""Seconds for which a load that fell counts as before: a user often sends the next turn immediately."""


@dataclass(eq=False)
class Placement:
    """A request's assignment to an engine. Its cells are reserved until it is released."""

    engine: Engine
    demand: Demand
    streaming: bool = False
    """Whether the first token has been generated, so that a user is reading."""
    leave: Callable[[], None] | None = None
    """Makes the engine suspend the request and store its KV; None while the request cannot be moved."""
    target: Engine | None = None
    """The engine that the request moves to after its engine has suspended it."""
    prompt: float = 0.0
    """Seconds that the prompt takes on this engine if nothing else runs there."""
    placed: float = field(default_factory=time.monotonic)
    """Time of the assignment in monotonic seconds."""

    @property
    def rested(self) -> bool:
        """Whether the request has been on its engine long enough to be moved."""
        return time.monotonic() - self.placed > REST

    @property
    def prefilling(self) -> float:
        """Minimum remaining seconds of the prompt's computation."""
        return 0.0 if self.streaming else max(0.0, self.placed + self.prompt - time.monotonic())

    @property
    def holds_up(self) -> bool:
        """Whether the prompt delays responses streamed by the same engine."""
        return not self.streaming and self.demand.prompt - self.demand.known > LONG


class Peak:
    """The highest load of the last LULL seconds."""

    def __init__(self) -> None:
        """Start without any load."""
        self._falling: deque[tuple[float, int]] = deque()
        """Last time of each load that no later load has reached, with that load: oldest and highest first."""

    def update(self, load: int) -> int:
        """Record the current `load` and return the peak."""
        now = time.monotonic()
        while self._falling and self._falling[-1][1] <= load:
            self._falling.pop()
        self._falling.append((now, load))
        while self._falling[0][0] < now - LULL:
            self._falling.popleft()
        return self._falling[0][1]


class Dispatcher:
    """Reserves cells, so that no engine receives more than it can hold, and moves requests where that is faster."""

    def __init__(
        self,
        engines: Sequence[Engine],
        plan: CostModel,
        *,
        warm: Callable[[Engine], None] = lambda _: None,
    ) -> None:
        """Dispatch to `engines`, which are all idle; `warm` is called to load an engine that will soon be needed."""
        self._engines = tuple(engines)
        self._plan = plan
        self._warm = warm
        self.most = max(plan.most(), len(engines))
        """Maximum concurrent requests: more would not raise the total tokens per second, but slow down all requests."""
        self._placed: dict[Engine, list[Placement]] = {engine: [] for engine in engines}
        self._homes: OrderedDict[str, Engine] = OrderedDict()
        self._peak = Peak()

    @property
    def running(self) -> int:
        """Number of placed requests."""
        return sum(map(len, self._placed.values()))

    def place(self, demand: Demand) -> Placement | None:
        """Place the request and return its placement, or None if no engine has room."""
        if self.running >= self.most:
            return None
        fitting = [engine for engine in self._engines if self._fits(engine, demand)]
        if not fitting:
            return None
        engine = min(self._candidates(fitting), key=lambda engine: self._cost(engine, demand))
        placement = Placement(engine, demand, prompt=self._prefill(engine, demand))
        self._placed[engine].append(placement)
        if not self._gather():
            self._clear(engine)
        self._warm_up()
        return placement

    def release(self, placement: Placement) -> None:
        """Free the cells of a request that has ended, and rebalance."""
        self._placed[placement.engine].remove(placement)
        self.rebalance()

    def settle(self, response: str, engine: Engine) -> None:
        """Record that `engine` holds this response's KV."""
        self._homes[response] = engine
        self._homes.move_to_end(response)
        if len(self._homes) > HOMES:
            self._homes.popitem(last=False)

    def arrive(self, placement: Placement) -> None:
        """Move a suspended request to its target, or to another engine with room if the target cannot run it now."""
        self._placed[placement.engine].remove(placement)
        fitting = [engine for engine in self._engines if self._fits(engine, placement.demand)]
        target = placement.target if placement.target in fitting else None
        if target is None:
            target = min(fitting, key=lambda engine: self._cost(engine, placement.demand), default=placement.engine)
        placement.engine, placement.target, placement.placed = target, None, time.monotonic()
        self._placed[target].append(placement)

    async def run(self) -> None:
        """Rebalance every ROUND seconds, until cancelled."""
        while True:
            self.rebalance()
            await asyncio.sleep(ROUND)

    def rebalance(self) -> None:
        """Move requests where the cost model predicts more tokens per second in total."""
        by_load = self._by_load()
        if not by_load or self._gather():
            return
        for engine in by_load:
            self._clear(engine)
        if any(not p.streaming or p.target for p in self._all()):
            return  # prompts are being computed and requests are moving: these have priority
        idle = [e for e in self._engines if e.state is State.IDLE and e.loaded and not self._placed[e]]
        if len(by_load) < self._wanted() and idle and len(self._placed[by_load[-1]]) > 1:
            self._move(by_load[-1], idle[0])
        elif len(self._placed[by_load[-1]]) - len(self._placed[by_load[0]]) > 1:
            self._move(by_load[-1], by_load[0])

    def _gather(self) -> bool:
        """Move all requests of the least loaded engine to the busiest if fewer engines should work.

        Return whether they should.
        """
        by_load = self._by_load()
        if len(by_load) <= self._wanted():
            return False
        for _ in range(len(self._placed[by_load[0]])):
            self._move(by_load[0], by_load[-1], prompts=True)
        return True

    def _wanted(self, more: int = 0) -> int:
        """Return how many engines should work, with `more` additional requests."""
        return self._plan.engines(self._peak.update(self.running + more), working=max(1, len(self._working())))

    def _candidates(self, fitting: Sequence[Engine]) -> Sequence[Engine]:
        """Return the engines to choose from: all that fit, or only the busiest if enough engines work."""
        working, count = self._working(), self._wanted(more=1)
        if len(working) < count:
            return fitting
        busiest = sorted(working, key=lambda engine: -len(self._placed[engine]))[:count]
        candidates = [engine for engine in fitting if engine in busiest]
        return candidates or fitting

    def _cost(self, engine: Engine, demand: Demand) -> float:
        """Return the seconds until the answer is complete, plus the delay that the prompt causes other requests."""
        placed = self._placed[engine]
        load = 0.0 if engine.loaded else LOAD
        prompt = self._prefill(engine, demand) * (1 + len(placed))
        # A step of another request's prompt runs between any two tokens of this answer.
        wait = sum(placement.prefilling for placement in placed)
        return load + prompt + wait + ANSWER * round_seconds(self._times(engine), len(placed) + 1)

    def _prefill(self, engine: Engine, demand: Demand) -> float:
        """Return the seconds that computing and fetching the prompt take on `engine`."""
        home = self._homes.get(demand.previous or "") is engine and engine.loaded
        missing = demand.prompt - (demand.known if home or demand.stored else 0)
        rows, seconds = max(self._times(engine).prefill.items())
        return missing * seconds / rows + (0.0 if home else demand.known * FETCH)

    def _times(self, engine: Engine) -> StepTimes:
        """Return the step times of `engine` with the cores that it has while the engines working now also work."""
        return self._plan.at(max(1, self._plan.cores // len({*self._working(), engine})))

    def _clear(self, engine: Engine) -> None:
        """Move streaming requests off `engine` if a long prompt delays them there and not elsewhere."""
        if self._wanted() < 2 or not self._is_held_up(engine):
            return
        others = [e for e in self._engines if e is not engine and e.loaded and not self._is_held_up(e)]
        for _ in self._placed[engine] if others else ():
            self._move(engine, min(others, key=lambda other: len(self._placed[other])))

    def _is_held_up(self, engine: Engine) -> bool:
        """Return whether `engine` computes a long prompt."""
        return any(placement.holds_up for placement in self._placed[engine])

    def _move(self, source: Engine, target: Engine, *, prompts: bool = False) -> None:
        """Move the request with the shortest context from `source` to `target`.

        Requests whose prompt is still being computed are moved only with `prompts`.
        """
        movable = [
            placement
            for placement in self._placed[source]
            if placement.leave
            and not placement.target
            and (placement.rested if placement.streaming else prompts)
            and self._fits(target, placement.demand)
        ]
        if movable:
            chosen = min(movable, key=lambda placement: placement.demand.prompt)
            chosen.target = target
            if chosen.leave is not None:
                chosen.leave()

    def _warm_up(self) -> None:
        """Load another engine for the next request if the cost model calls for more engines than are loaded."""
        wanted = self._wanted()
        loaded = [e for e in self._engines if e.state in (State.LOADING, State.IDLE, State.BUSY) or self._placed[e]]
        stopped = [e for e in self._engines if e.state is State.STOPPED and not self._placed[e]]
        if len(loaded) < wanted and stopped:
            self._warm(stopped[0])

    def _fits(self, engine: Engine, demand: Demand) -> bool:
        placed = self._placed[engine]
        if len(placed) >= WIDEST or (engine.state is State.FAILED and not self._is_last_hope(engine)):
            return False
        return sum(placement.demand.cells for placement in placed) + demand.cells <= engine.cells

    def _is_last_hope(self, engine: Engine) -> bool:
        """Return whether a request may use a failed engine: only if no engine could load the model.

        The pool restarts crashed engines.
        """
        return engine.load_failed and all(other.load_failed for other in self._engines)

    def _working(self) -> list[Engine]:
        return [engine for engine, placed in self._placed.items() if placed]

    def _by_load(self) -> list[Engine]:
        """Return the working engines, the one with the fewest requests first."""
        return sorted(self._working(), key=lambda engine: len(self._placed[engine]))

    def _all(self) -> Iterator[Placement]:
        return (placement for placed in self._placed.values() for placement in placed)
