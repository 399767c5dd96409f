"""Assigns requests to engines, on arrival and while they run.

Few requests are spread over engines with one or two threads each; many requests share wide steps of one engine. The
cost model determines how many engines work. Among these, a request goes to the engine where it finishes first: usually
its home, the engine that still holds its conversation's KV, unless waiting there costs more than moving. A long prompt
goes to an engine where no response is being streamed, or from which the streaming requests can be moved.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine import WIDEST, Engine, LearningCostModel, State, StepTimes, round_seconds
from gateway.scheduling.engine_count import EngineCount
from gateway.scheduling.placement import STRIDE, Demand, Placement

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
MIN_STAY: Final = 1.0
"""Minimum seconds that a request stays on an engine before it is moved."""
ROUND: Final = 0.5
"""Seconds between two rebalancing rounds."""
LULL: Final = 2.0
"""Seconds for which a load that fell counts as before: a user often sends the next turn immediately."""


@dataclass(eq=False)
class _Run:
    """A placed request."""

    placement: Placement
    prompt: float
    """Seconds that the prompt takes on its first engine if nothing else runs there."""
    placed: float
    """Time of the placement in monotonic seconds."""
    streaming: bool = False
    """Whether the first token has been generated, so that a user is reading."""
    request: int | None = None
    """The request's number in its engine, under which it can be suspended; None while it cannot be moved."""
    target: Engine | None = None
    """The engine that the request moves to after its engine has suspended it."""


class Peak:
    """The highest load of the last LULL seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start without any load. `clock` returns seconds."""
        self._clock = clock
        self._falling: deque[tuple[float, int]] = deque()
        """Last time of each load that no later load has reached, with that load: oldest and highest first."""

    def update(self, load: int) -> int:
        """Record the current `load` and return the peak."""
        now = self._clock()
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
        costs: LearningCostModel,
        *,
        warm: Callable[[Engine], None] = lambda _: None,
        suspend: Callable[[Engine, int], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Dispatch to `engines`, which are all idle.

        `warm` is called to load an engine that will soon be needed, `suspend` to make an engine stop a request, by its
        number there, and store its KV. `clock` returns seconds.
        """
        self._engines = tuple(engines)
        self._costs = costs
        self._warm = warm
        self._suspend = suspend
        self._clock = clock
        self.most = max(costs.model.most(), len(engines))
        """Maximum concurrent requests: more would not raise the total tokens per second, but slow down all requests."""
        self._runs: dict[int, _Run] = {}
        """Placed requests by number; on each engine, the one that has been there longest comes first."""
        self._numbers = itertools.count()
        self._homes: OrderedDict[str, Engine] = OrderedDict()
        self._peak = Peak(clock)
        self._count = EngineCount(costs, clock)

    @property
    def running(self) -> int:
        """Number of placed requests."""
        return len(self._runs)

    @property
    def trying(self) -> bool:
        """Whether a number of engines is being tried of which too little is known."""
        return self._count.trying

    def expect(self) -> None:
        """Start to load an engine if none is loaded: a request will be placed as soon as its prompt is encoded."""
        if all(engine.state is State.STOPPED for engine in self._engines):
            self._warm(self._engines[0])

    def place(self, demand: Demand) -> Placement | None:
        """Place the request and return its placement, or None if no engine has room."""
        if self.running >= self.most:
            return None
        fitting = [engine for engine in self._engines if self._fits(engine, demand)]
        if not fitting:
            return None
        shared = self._homes.get(demand.group or "") or self._leader(demand)
        if shared is not None and shared in fitting:
            engine = shared
        else:
            engine = min(self._candidates(fitting), key=lambda engine: self._cost(engine, demand))
        if demand.group is not None:
            self._remember(demand.group, engine)
        placement = Placement(next(self._numbers), engine, demand)
        self._runs[placement.number] = _Run(placement, self._prefill(engine, demand), self._clock())
        if not self._gather():
            self._clear(engine)
        self._warm_up()
        return placement

    def release(self, placement: Placement) -> None:
        """Free the cells of a request that has ended, and rebalance."""
        del self._runs[placement.number]
        self.rebalance()

    def settle(self, response: str, placement: Placement) -> None:
        """Record that the engine where the request is now holds this response's KV."""
        self._remember(response, self._runs[placement.number].placement.engine)

    def _remember(self, name: str, engine: Engine) -> None:
        self._homes[name] = engine
        self._homes.move_to_end(name)
        if len(self._homes) > HOMES:
            self._homes.popitem(last=False)

    def started(self, placement: Placement, request: int) -> None:
        """Record that the engine runs the request, under the number `request`."""
        if placement.demand.stored:  # else another engine could not fetch its KV
            self._runs[placement.number].request = request

    def streams(self, placement: Placement) -> None:
        """Record that the engine has generated the first token."""
        self._runs[placement.number].streaming = True

    def stopped(self, placement: Placement) -> None:
        """Record that the engine does not run the request any more."""
        self._runs[placement.number].request = None

    def move(self, placement: Placement) -> Placement:
        """Move a stopped request to its target, or to another engine with room if the target cannot run it now.

        Returns the new placement.
        """
        run = self._runs.pop(placement.number)
        fitting = [engine for engine in self._engines if self._fits(engine, placement.demand)]
        target = run.target if run.target in fitting else None
        if target is None:
            target = min(fitting, key=lambda engine: self._cost(engine, placement.demand), default=placement.engine)
        moved = dataclasses.replace(placement, engine=target)
        self._runs[moved.number] = dataclasses.replace(run, placement=moved, target=None, placed=self._clock())
        return moved

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
        if any(not run.streaming or run.target for run in self._runs.values()):
            return  # prompts are being computed and requests are moving: these have priority
        loaded = sum(engine.loaded for engine in self._engines)
        self._count.consider(self._peak.update(self.running), working=len(by_load), loaded=loaded)
        idle = [e for e in self._engines if e.state is State.IDLE and e.loaded and not self._on(e)]
        self._spread([*by_load, *idle[: max(0, self._wanted() - len(by_load))]])

    def _spread(self, engines: Sequence[Engine]) -> None:
        """Move requests until `engines` have equally many, but for one."""
        loads = {engine.name: len(self._on(engine)) for engine in engines}
        for _ in range(self.running):
            by_load = sorted(engines, key=lambda engine: loads[engine.name])
            fewest, most = by_load[0], by_load[-1]
            if loads[most.name] - loads[fewest.name] < 2:
                return
            self._move(most, fewest)
            loads[most.name] -= 1
            loads[fewest.name] += 1

    def _gather(self) -> bool:
        """Move all requests of the least loaded engine to the busiest if fewer engines should work.

        Return whether they should.
        """
        by_load = self._by_load()
        if len(by_load) <= self._wanted():
            return False
        for _ in range(len(self._on(by_load[0]))):
            self._move(by_load[0], by_load[-1], prompts=True)
        return True

    def _wanted(self, more: int = 0) -> int:
        """Return how many engines should work, with `more` additional requests."""
        return self._count.wanted(self._peak.update(self.running + more), working=max(1, len(self._working())))

    def _candidates(self, fitting: Sequence[Engine]) -> Sequence[Engine]:
        """Return the engines to choose from: all that fit, or only the busiest if enough engines work."""
        working, count = self._working(), self._wanted(more=1)
        if len(working) < count:
            return fitting
        busiest = sorted(working, key=lambda engine: -len(self._on(engine)))[:count]
        candidates = [engine for engine in fitting if engine in busiest]
        return candidates or fitting

    def _cost(self, engine: Engine, demand: Demand) -> float:
        """Return the seconds until the answer is complete, plus the delay that the prompt causes other requests."""
        runs = self._on(engine)
        load = 0.0 if engine.loaded else LOAD
        prompt = self._prefill(engine, demand) * (1 + len(runs))
        # A step of another request's prompt runs between any two tokens of this answer.
        wait = sum(self._prefilling(run) for run in runs)
        return load + prompt + wait + ANSWER * round_seconds(self._times(engine), len(runs) + 1)

    def _leader(self, demand: Demand) -> Engine | None:
        """Return the engine that computes most of the prompt now, for another request with the same beginning.

        There the common tokens are computed once. Once both requests are answered, `rebalance` spreads them.
        """
        prompts = [run.placement for run in self._runs.values() if not run.streaming]
        longest = max(prompts, key=lambda other: demand.common(other.demand), default=None)
        if longest is None:
            return None
        saved = demand.common(longest.demand) - demand.known
        return longest.engine if 2 * saved >= max(demand.new, STRIDE) else None

    def _prefill(self, engine: Engine, demand: Demand) -> float:
        """Return the seconds that computing and fetching the prompt take on `engine`."""
        home = self._homes.get(demand.previous or "") is engine and engine.loaded
        missing = demand.prompt - (demand.known if home or demand.stored else 0)
        rows, seconds = max(self._times(engine).prefill.items())
        return missing * seconds / rows + (0.0 if home else demand.known * FETCH)

    def _prefilling(self, run: _Run) -> float:
        """Return the minimum remaining seconds of a prompt's computation."""
        return 0.0 if run.streaming else max(0.0, run.placed + run.prompt - self._clock())

    def _times(self, engine: Engine) -> StepTimes:
        """Return the step times of `engine` with the cores that it has while the engines working now also work."""
        model = self._costs.model
        return model.at(max(1, model.cores // len({*self._working(), engine})))

    def _clear(self, engine: Engine) -> None:
        """Move streaming requests off `engine` if a long prompt delays them there and not elsewhere."""
        if self._wanted() < 2 or not self._is_held_up(engine):
            return
        others = [e for e in self._engines if e is not engine and e.loaded and not self._is_held_up(e)]
        for _ in self._on(engine) if others else ():
            self._move(engine, min(others, key=lambda other: len(self._on(other))))

    def _is_held_up(self, engine: Engine) -> bool:
        """Return whether `engine` computes a long prompt."""
        return any(not run.streaming and run.placement.demand.new > LONG for run in self._on(engine))

    def _move(self, source: Engine, target: Engine, *, prompts: bool = False) -> None:
        """Move the request with the shortest context from `source` to `target`.

        Requests whose prompt is still being computed are moved only with `prompts`.
        """
        now = self._clock()
        movable = [
            run
            for run in self._on(source)
            if run.request is not None
            and run.target is None
            and (now - run.placed > MIN_STAY if run.streaming else prompts)
            and self._fits(target, run.placement.demand)
        ]
        if movable:
            chosen = min(movable, key=lambda run: run.placement.demand.prompt)
            chosen.target = target
            if chosen.request is not None:
                self._suspend(source, chosen.request)

    def _warm_up(self) -> None:
        """Load another engine for the next request if the cost model calls for more engines than are loaded."""
        wanted = self._wanted()
        loaded = [e for e in self._engines if e.state in (State.LOADING, State.IDLE, State.BUSY) or self._on(e)]
        stopped = [e for e in self._engines if e.state is State.STOPPED and not self._on(e)]
        if len(loaded) < wanted and stopped:
            self._warm(stopped[0])

    def _fits(self, engine: Engine, demand: Demand) -> bool:
        runs = self._on(engine)
        if len(runs) >= WIDEST or (engine.state is State.FAILED and not self._is_last_hope(engine)):
            return False
        return sum(run.placement.demand.cells for run in runs) + demand.cells <= engine.cells

    def _is_last_hope(self, engine: Engine) -> bool:
        """Return whether a request may use a failed engine: only if no engine could load the model.

        The pool restarts crashed engines.
        """
        return engine.load_failed and all(other.load_failed for other in self._engines)

    def _on(self, engine: Engine) -> list[_Run]:
        return [run for run in self._runs.values() if run.placement.engine is engine]

    def _working(self) -> list[Engine]:
        return [engine for engine in self._engines if self._on(engine)]

    def _by_load(self) -> list[Engine]:
        """Return the working engines, the one with the fewest requests first."""
        return sorted(self._working(), key=lambda engine: len(self._on(engine)))
