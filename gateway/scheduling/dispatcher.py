"""Which engine computes which request, when it comes and while it runs.

A few answers spread over engines of a thread or two each, many share wide steps in one: how many engines work is the
plan's to say. Within that a request goes where it is soonest done: home, where its conversation's KV still is, unless
waiting there costs more than moving. A long prompt goes to an engine where nobody reads along, or that can be cleared.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from engine import WIDEST, CostModel, EngineProcess, State, StepTimes, round_seconds

HOMES: Final = 4096
"""Responses whose engine is remembered; an engine holds far fewer conversations."""
LONG: Final = 64
"""New tokens from which a prompt holds up those who stream beside it."""
ANSWER: Final = 128
"""Tokens of an answer, as long as nobody knows: what waiting and moving are weighed with."""
LOAD: Final = 4.0
"""What loading an engine counts for: it takes a second, but one in which a person sees nothing happen."""
FETCH: Final = 2e-5
"""Seconds a token that KV takes from one engine to another through the store."""
REST: Final = 1.0
"""Seconds that a request stays where it is before it is moved on."""
ROUND: Final = 0.5
"""Seconds between two looks at who would be better elsewhere."""
LULL: Final = 2.0
"""Seconds for which a load that fell counts as before: who reads an answer often asks again at once."""


@dataclass(frozen=True)
class Demand:
    """What a request needs."""

    cells: int
    """KV cells at most."""
    previous: str | None = None
    """The response that it continues."""
    tokens: int = 0
    """Of its prompt."""
    known: int = 0
    """Of these, what an engine has computed before."""
    stored: bool = False
    """Whether its KV goes to the store, from where another engine can take it."""


@dataclass(eq=False)
class Placement:
    """A place in an engine; its cells are set aside until it is released."""

    engine: EngineProcess
    demand: Demand
    streaming: bool = False
    """Whether its first token has come: from then on somebody reads along."""
    leave: Callable[[], None] | None = None
    """Makes the engine give it up, with its KV in the store; None as long as it cannot be moved."""
    target: EngineProcess | None = None
    """Where it goes, once its engine has given it up."""
    prompt: float = 0.0
    """Seconds that its prompt takes there, alone."""
    placed: float = field(default_factory=time.monotonic)

    @property
    def rested(self) -> bool:
        """Whether it has been where it is for long enough to be moved on."""
        return time.monotonic() - self.placed > REST

    @property
    def prefilling(self) -> float:
        """Seconds for which its prompt will go on, at least."""
        return 0.0 if self.streaming else max(0.0, self.placed + self.prompt - time.monotonic())

    @property
    def holds_up(self) -> bool:
        """Whether those who stream beside it wait for its prompt."""
        return not self.streaming and self.demand.tokens - self.demand.known > LONG


class Peak:
    """The highest load of the last LULL seconds."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._falling: deque[tuple[float, int]] = deque()
        """When a load was seen last, for every load that no later one reached: oldest and highest first."""

    def of(self, load: int) -> int:
        """The peak, now that the load is this."""
        now = time.monotonic()
        while self._falling and self._falling[-1][1] <= load:
            self._falling.pop()
        self._falling.append((now, load))
        while self._falling[0][0] < now - LULL:
            self._falling.popleft()
        return self._falling[0][1]


class Dispatcher:
    """Sets cells aside, so that no engine is sent what it cannot hold, and moves what would be better elsewhere."""

    def __init__(
        self,
        engines: Sequence[EngineProcess],
        plan: CostModel,
        *,
        warm: Callable[[EngineProcess], None] = lambda _: None,
    ) -> None:
        """Dispatch to `engines`, none of which runs anything yet; `warm` has one loaded that will soon be wanted."""
        self._engines = tuple(engines)
        self._plan = plan
        self._warm = warm
        self.most = max(plan.most(), len(engines))
        """Requests that run at once: with more of them nobody would get more tokens a second, and all would wait."""
        self._placed: dict[EngineProcess, list[Placement]] = {engine: [] for engine in engines}
        self._homes: OrderedDict[str, EngineProcess] = OrderedDict()
        self._peak = Peak()

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return sum(map(len, self._placed.values()))

    def place(self, demand: Demand) -> Placement | None:
        """A place for the request, or None as long as there is no room."""
        if self.running >= self.most:
            return None
        able = [engine for engine in self._engines if self._fits(engine, demand)]
        if not able:
            return None
        engine = min(self._candidates(able), key=lambda engine: self._cost(engine, demand))
        placement = Placement(engine, demand, prompt=self._prefill(engine, demand))
        self._placed[engine].append(placement)
        if not self._gather():
            self._clear(engine)
        self._warm_up()
        return placement

    def release(self, placement: Placement) -> None:
        """The request ended; its cells are free for the next."""
        self._placed[placement.engine].remove(placement)
        self.rebalance()

    def settle(self, response: str, engine: EngineProcess) -> None:
        """Remember that `engine` holds this response's KV."""
        self._homes[response] = engine
        self._homes.move_to_end(response)
        if len(self._homes) > HOMES:
            self._homes.popitem(last=False)

    def arrive(self, placement: Placement) -> None:
        """Its engine gave it up: it belongs to its target from here on, or to whichever has room if that fell away."""
        self._placed[placement.engine].remove(placement)
        able = [engine for engine in self._engines if self._fits(engine, placement.demand)]
        target = placement.target if placement.target in able else None
        if target is None:
            target = min(able, key=lambda engine: self._cost(engine, placement.demand), default=placement.engine)
        placement.engine, placement.target, placement.placed = target, None, time.monotonic()
        self._placed[target].append(placement)

    async def keep(self) -> None:
        """Rebalance now and then, until cancelled."""
        while True:
            self.rebalance()
            await asyncio.sleep(ROUND)

    def rebalance(self) -> None:
        """Move requests, where the plan says that all then get more tokens a second."""
        by_load = self._by_load()
        if not by_load or self._gather():
            return
        for engine in by_load:
            self._clear(engine)
        if any(not p.streaming or p.target for p in self._all()):
            return  # prompts are under way: what they need comes first
        idle = [e for e in self._engines if e.state is State.IDLE and e.loaded and not self._placed[e]]
        if len(by_load) < self._wanted() and idle and len(self._placed[by_load[-1]]) > 1:
            self._move(by_load[-1], idle[0])
        elif len(self._placed[by_load[-1]]) - len(self._placed[by_load[0]]) > 1:
            self._move(by_load[-1], by_load[0])

    def _gather(self) -> bool:
        """Move all from one engine to the busiest, if so many are better off together; whether they are."""
        by_load = self._by_load()
        if len(by_load) <= self._wanted():
            return False
        for _ in range(len(self._placed[by_load[0]])):
            self._move(by_load[0], by_load[-1], prompts=True)
        return True

    def _wanted(self, more: int = 0) -> int:
        """Engines that should work, with so many `more` requests."""
        return self._plan.engines(self._peak.of(self.running + more), working=max(1, len(self._working())))

    def _candidates(self, able: Sequence[EngineProcess]) -> Sequence[EngineProcess]:
        working, count = self._working(), self._wanted(more=1)
        if len(working) < count:
            return able
        kept = sorted(working, key=lambda engine: -len(self._placed[engine]))[:count]
        candidates = [engine for engine in able if engine in kept]
        return candidates or able

    def _cost(self, engine: EngineProcess, demand: Demand) -> float:
        """Seconds until its answer is done, and that others lose by it."""
        placed = self._placed[engine]
        load = 0.0 if engine.loaded else LOAD
        prompt = self._prefill(engine, demand) * (1 + len(placed))
        # Of another's prompt a step comes between any two of its tokens.
        wait = sum(placement.prefilling for placement in placed)
        return load + prompt + wait + ANSWER * round_seconds(self._times(engine), len(placed) + 1)

    def _prefill(self, engine: EngineProcess, demand: Demand) -> float:
        """Seconds that its prompt takes there."""
        home = self._homes.get(demand.previous or "") is engine and engine.loaded
        missing = demand.tokens - (demand.known if home or demand.stored else 0)
        rows, taken = max(self._times(engine).prefill.items())
        return missing * taken / rows + (0.0 if home else demand.known * FETCH)

    def _times(self, engine: EngineProcess) -> StepTimes:
        """What steps take there, while those work who work now."""
        return self._plan.at(max(1, self._plan.cores // len({*self._working(), engine})))

    def _clear(self, engine: EngineProcess) -> None:
        """Have those who stream in `engine` beside a long prompt go on where there is none."""
        if self._wanted() < 2 or not self._is_held_up(engine):
            return
        others = [e for e in self._engines if e is not engine and e.loaded and not self._is_held_up(e)]
        for _ in self._placed[engine] if others else ():
            self._move(engine, min(others, key=lambda other: len(self._placed[other])))

    def _is_held_up(self, engine: EngineProcess) -> bool:
        """Whether a long prompt is computed there."""
        return any(placement.holds_up for placement in self._placed[engine])

    def _move(self, source: EngineProcess, target: EngineProcess, *, prompts: bool = False) -> None:
        """Send who has the shortest context from `source` to `target`; one whose prompt is computed only if asked."""
        able = [
            placement
            for placement in self._placed[source]
            if placement.leave
            and not placement.target
            and (placement.rested if placement.streaming else prompts)
            and self._fits(target, placement.demand)
        ]
        if able:
            chosen = min(able, key=lambda placement: placement.demand.tokens)
            chosen.target = target
            if chosen.leave is not None:
                chosen.leave()

    def _warm_up(self) -> None:
        """Load an engine that the plan wants beside those that work, for the next who comes."""
        wanted = self._wanted()
        loaded = [e for e in self._engines if e.state in (State.LOADING, State.IDLE, State.BUSY) or self._placed[e]]
        stopped = [e for e in self._engines if e.state is State.STOPPED and not self._placed[e]]
        if len(loaded) < wanted and stopped:
            self._warm(stopped[0])

    def _fits(self, engine: EngineProcess, demand: Demand) -> bool:
        placed = self._placed[engine]
        if len(placed) >= WIDEST or (engine.state is State.FAILED and not self._is_last_hope(engine)):
            return False
        return sum(placement.demand.cells for placement in placed) + demand.cells <= engine.cells

    def _is_last_hope(self, engine: EngineProcess) -> bool:
        """Whether a request may try what failed: when no engine could load the model. Crashed ones are mended."""
        return engine.load_failed and all(other.load_failed for other in self._engines)

    def _working(self) -> list[EngineProcess]:
        return [engine for engine, placed in self._placed.items() if placed]

    def _by_load(self) -> list[EngineProcess]:
        """Those that work, the one with the fewest requests first."""
        return sorted(self._working(), key=lambda engine: len(self._placed[engine]))

    def _all(self) -> Iterator[Placement]:
        return (placement for placed in self._placed.values() for placement in placed)
