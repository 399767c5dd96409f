"""Does the learned cost model find the best configuration? The real scheduler and dispatcher on a virtual clock.

python -m benchmarks.adapting [--seconds 120]: users who ask again as soon as they are answered, on machines whose step
times were recorded. Printed is the throughput after the first minute, relative to the best of all fixed configurations,
each of which knows the machine's step times. Takes about a minute, and is the same on every machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from benchmarks.command import option_parser
from engine import CostModel, LearningCostModel, State, StepTimes, heuristic
from engine.cost_model import seconds
from engine.kv.manager import CachedSequence
from engine.scheduler import Scheduler, Sequence, Step
from gateway.scheduling.dispatcher import ROUND, Dispatcher
from gateway.scheduling.placement import Demand, Placement

LOADS: Final = (1, 2, 3, 4, 6, 8, 12, 16)
WARM_UP: Final = 60.0
MOVE_SECONDS: Final = 0.05
"""Seconds in which a request moves to another engine."""
NOISE: Final = 0.03
"""Standard deviation of the logarithm of step times. One step in a hundred takes three times as long."""
PROMPT, ANSWER = 24, 160
_PREFILL: Final = (1, 8, 16, 32, 64, 128, 256)


def _times(engines: int, threads: int, decode: dict[int, float], prefill: float) -> StepTimes:
    """Return step times from tokens per second by rows, and the prefill's tokens per second."""
    steps = {rows: rows / rate for rows, rate in decode.items()}
    return StepTimes(
        engines=engines,
        threads=threads,
        decode=steps,
        prefill={rows: max(steps[1], rows / prefill * (1 + 4 / rows)) for rows in _PREFILL},
    )


def _machine(*times: StepTimes, cores: int) -> CostModel:
    return CostModel(cores=cores, times=list(times), measured=True)


MACHINES: Final = {
    "2 cores, fast memory, Q4_K_M": _machine(
        _times(1, 2, {1: 59, 2: 47, 3: 55, 4: 70, 6: 73, 8: 112, 12: 134, 16: 164, 32: 174}, 300),
        _times(2, 1, {1: 43.5, 2: 26, 3: 30, 4: 37, 6: 38, 8: 57, 12: 69, 16: 84, 32: 94}, 160),
        cores=2,
    ),
    "2 cores, slow memory, Q4_K_M": _machine(
        _times(1, 2, {1: 27, 2: 25, 3: 26, 4: 40, 6: 48, 8: 45, 16: 56, 32: 60}, 95),
        _times(2, 1, {1: 10.5, 2: 9.5, 3: 9, 4: 14, 6: 17, 8: 16, 16: 24, 32: 26}, 45),
        cores=2,
    ),
    "2 cores, slow memory, Q4_0": _machine(
        _times(1, 2, {1: 39, 2: 47, 3: 50, 4: 72, 6: 69, 8: 84, 16: 115, 32: 120}, 137),
        _times(2, 1, {1: 15, 2: 17, 3: 17, 4: 27, 6: 27, 8: 33, 16: 48, 32: 52}, 66),
        cores=2,
    ),
    "laptop, 4 cores, Q4_K_M": _machine(
        _times(1, 4, {1: 40, 2: 42, 3: 47, 4: 66, 6: 78, 8: 104, 16: 150, 32: 165}, 260),
        _times(2, 2, {1: 24, 2: 25, 3: 28, 4: 38, 6: 44, 8: 58, 16: 80, 32: 88}, 135),
        _times(3, 1, {1: 15, 2: 12, 3: 13, 4: 16, 6: 18, 8: 25, 16: 38, 32: 42}, 62),
        _times(4, 1, {1: 11.5, 2: 10, 3: 11, 4: 14, 6: 16, 8: 22, 16: 34, 32: 38}, 60),
        cores=4,
    ),
    "ARM, 4 small cores, Q4_0": _machine(
        _times(1, 4, {1: 11, 2: 18, 3: 22, 4: 34, 6: 33, 8: 38, 16: 42, 32: 43}, 48),
        _times(2, 2, {1: 7, 2: 10, 3: 12, 4: 18, 6: 18, 8: 20, 16: 22, 32: 22}, 25),
        _times(3, 1, {1: 4, 2: 5, 3: 6, 4: 9, 6: 9, 8: 10, 16: 11, 32: 11}, 12),
        _times(4, 1, {1: 3.4, 2: 4.8, 3: 5.6, 4: 8.5, 6: 8.4, 8: 9.6, 16: 10.5, 32: 11}, 12),
        cores=4,
    ),
}
"""Step times of two machines of docs/benchmarks.md's kind, and of three that are assumed, as (engines, threads) with
tokens per second of one engine by rows while all work."""


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        """Start at 0."""
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@dataclass(eq=False)
class VirtualEngine:
    """An engine whose steps take the time of a table."""

    name: str
    scheduler: Scheduler
    state: State = State.IDLE
    cells: int = 1 << 20
    loaded: bool = True
    load_failed: bool = False
    threads: int = 0
    step: Step | None = None
    taken: float = 0.0
    ends: float = math.inf
    sequences: dict[int, Sequence] = field(default_factory=dict)
    suspended: set[int] = field(default_factory=set)


class Run:
    """Users on one machine, until a time."""

    def __init__(
        self, machine: CostModel, costs: Callable[[Clock], LearningCostModel], users: int,
        slowness: Callable[[float, int], float],
    ) -> None:  # fmt: skip
        """Create the engines.

        `costs` makes a cost model, once for the gateway and once for each engine. `slowness` is a factor on the step
        times, by time and number of working engines.
        """
        self.clock = Clock()
        self._machine, self._slowness = machine, slowness
        self._gateway = costs(self.clock)
        self._engines = [VirtualEngine(str(i), Scheduler(costs(self.clock))) for i in range(len(machine.times))]
        self._by_name = {engine.name: engine for engine in self._engines}
        self._dispatcher = Dispatcher(self._engines, self._gateway, suspend=self._suspend, clock=self.clock)  # type: ignore[arg-type]
        self._placements: dict[int, Placement] = {}
        self._arrivals: list[tuple[float, int, Sequence]] = []
        self._waiting = users
        self._random = random.Random(1)
        self.tokens: list[tuple[float, int]] = []

    def _suspend(self, engine: object, number: int) -> None:
        assert isinstance(engine, VirtualEngine)  # noqa: S101 - for the type checker
        engine.suspended.add(number)

    def run(self, until: float) -> None:
        """Advance the clock to `until`."""
        rebalance = self.clock.now
        while self.clock.now < until:
            self._admit()
            for engine in self._engines:
                self._begin(engine)
            times = [engine.ends for engine in self._engines] + [at for at, _, _ in self._arrivals]
            self.clock.now = min([*times, rebalance + ROUND])
            for engine in self._engines:
                if engine.ends <= self.clock.now:
                    self._finish(engine)
            if self.clock.now >= rebalance + ROUND:
                rebalance = self.clock.now
                self._dispatcher.rebalance()
            for arrival in [arrival for arrival in self._arrivals if arrival[0] <= self.clock.now]:
                self._arrivals.remove(arrival)
                self._start(arrival[1], arrival[2])

    def rate(self, since: float) -> float:
        """Return the tokens per second since a time."""
        return sum(tokens for at, tokens in self.tokens if at >= since) / (self.clock.now - since)

    def _admit(self) -> None:
        while self._waiting:
            placement = self._dispatcher.place(Demand(PROMPT, ANSWER, stored=True))
            if placement is None:
                return
            self._waiting -= 1
            number = placement.number
            self._placements[number] = placement
            self._start(number, Sequence(number, CachedSequence(number), [0] * PROMPT, 0, PROMPT + ANSWER))

    def _start(self, number: int, sequence: Sequence) -> None:
        placement = self._placements[number]
        engine = self._by_name[placement.engine.name]
        engine.sequences[number] = sequence
        engine.scheduler.add(sequence)
        engine.state = State.BUSY
        self._dispatcher.started(placement, number)

    def _begin(self, engine: VirtualEngine) -> None:
        if engine.step is not None or not engine.sequences:
            return
        working = sum(bool(each.sequences) for each in self._engines)
        table = next(times for times in self._machine.times if times.engines == working)
        if engine.threads != table.threads:
            engine.threads = engine.scheduler.threads = table.threads
        step = engine.scheduler.schedule()
        noise = math.exp(self._random.gauss(0, NOISE)) * (3.0 if self._random.random() < 0.01 else 1.0)
        kind = table.decode if step.kind == "decode" else table.prefill
        engine.step = step
        engine.taken = seconds(kind, step.width) * noise * self._slowness(self.clock.now, working)
        engine.ends = self.clock.now + engine.taken

    def _finish(self, engine: VirtualEngine) -> None:
        step, engine.step, engine.ends = engine.step, None, math.inf
        assert step is not None  # noqa: S101 - for the type checker
        engine.scheduler.observe(step, engine.taken)
        if step.typical:
            working = sum(bool(each.sequences) for each in self._engines)
            self._gateway.observe(engine.threads, step.kind, step.width, engine.taken, working=working)
        for sequence, tokens in step.parts:
            sequence.computed += tokens
            if sequence.pending == 0:
                self._token(engine, sequence)
        for number in list(engine.suspended):
            engine.suspended.discard(number)
            if number in engine.sequences:
                self._leave(engine, number)
        if not engine.sequences:
            engine.state = State.IDLE

    def _token(self, engine: VirtualEngine, sequence: Sequence) -> None:
        number = sequence.request
        if sequence.computed == sequence.prompt:
            engine.scheduler.prefilled(sequence)
            self._dispatcher.streams(self._placements[number])
        sequence.tokens.append(0)
        self.tokens.append((self.clock.now, 1))
        if len(sequence.tokens) >= sequence.limit:
            engine.scheduler.remove(sequence)
            del engine.sequences[number]
            self._dispatcher.release(self._placements.pop(number))
            self._waiting += 1

    def _leave(self, engine: VirtualEngine, number: int) -> None:
        sequence = engine.sequences.pop(number)
        engine.scheduler.remove(sequence)
        self._dispatcher.stopped(self._placements[number])
        self._placements[number] = self._dispatcher.move(self._placements[number])
        limit = PROMPT + ANSWER
        moved = Sequence(number, CachedSequence(number), list(sequence.tokens), len(sequence.tokens) - 1, limit)
        self._arrivals.append((self.clock.now + MOVE_SECONDS, number, moved))


def steady(_: float, __: int) -> float:
    """Return 1: the machine is as recorded."""
    return 1.0


def learned(machine: CostModel, weights: int = 491_000_000) -> Callable[[Clock], LearningCostModel]:
    """Return a maker of cost models that know nothing of `machine` but its cores."""
    guess = heuristic(weights, machine.cores, len(machine.times))
    return lambda clock: LearningCostModel(guess, clock=clock)


def fixed(machine: CostModel) -> Iterator[Callable[[Clock], LearningCostModel]]:
    """Yield makers of cost models that know the machine: with any number of engines, and with each one alone."""
    yield lambda clock: LearningCostModel(machine, clock=clock)
    for times in machine.times:
        only = msgspec.structs.replace(machine, times=[times])
        yield lambda clock, only=only: LearningCostModel(only, clock=clock)  # type: ignore[misc]


def throughput(
    machine: CostModel, costs: Callable[[Clock], LearningCostModel], users: int, until: float,
    slowness: Callable[[float, int], float] = steady,
) -> float:  # fmt: skip
    """Return the tokens per second after WARM_UP."""
    run = Run(machine, costs, users, slowness)
    run.run(until)
    return run.rate(WARM_UP)


def best(machine: CostModel, users: int, until: float) -> float:
    """Return the tokens per second of the best configuration that knows the machine."""
    return max(throughput(machine, costs, users, until) for costs in fixed(machine))


def main() -> None:
    """Simulate and print."""
    parser = option_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="virtual seconds of each run")
    options = parser.parse_args()
    until = WARM_UP + options.seconds
    print(f"{'users':>34}", *(f"{users:>6}" for users in LOADS))
    for name, machine in MACHINES.items():
        ratios = [throughput(machine, learned(machine), users, until) / best(machine, users, until) for users in LOADS]
        print(f"{name:>34}", *(f"{ratio:6.2f}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
