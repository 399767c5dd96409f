"""The cost model learns from steps, and the real scheduler and dispatcher find the best configuration with it."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.adapting import MACHINES, Clock, Run, best, fixed, learned, throughput
from engine import CostModel, LearningCostModel, heuristic
from engine.cost_model import BATCH
from engine.kv.manager import CachedSequence
from engine.learning import FIRST
from engine.scheduler import TRIAL_SECONDS, TRIAL_SHARE, Scheduler, Sequence
from gateway.scheduling.engine_count import TRIAL_SECONDS as ENGINE_TRIAL_SECONDS
from tests.support.plans import MEASURED

GUESS = heuristic(491_000_000, 2, 2)
UNTIL = 100.0


def feed(costs: LearningCostModel, clock: Clock, threads: int, width: int, taken: float, steps: int) -> None:
    for _ in range(steps):
        clock.now += taken
        costs.observe(threads, "decode", width, taken)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_machine_that_is_slower_than_guessed_is_slower_at_all_widths(clock: Clock) -> None:
    costs = LearningCostModel(GUESS, clock=clock)
    feed(costs, clock, 2, 1, 3 * GUESS.times[0].decode[1], 20)
    for times, guess in zip(costs.model.times, GUESS.times, strict=True):
        assert times.decode[8] == pytest.approx(3 * guess.decode[8], rel=0.05)
        assert times.prefill[64] == pytest.approx(3 * guess.prefill[64], rel=0.05)
    assert costs.samples == 20


def test_a_width_that_the_guess_has_wrong_is_corrected_alone(clock: Clock) -> None:
    costs = LearningCostModel(GUESS, clock=clock)
    one, four = GUESS.times[0].decode[1], GUESS.times[0].decode[4] / 3
    for _ in range(10):
        feed(costs, clock, 2, 1, one, 3)
        feed(costs, clock, 2, 4, four, 3)
    model = costs.model.times[0]
    assert model.decode[1] == pytest.approx(one, rel=0.05)
    assert model.decode[4] == pytest.approx(four, rel=0.05)


def test_one_interrupted_step_changes_little(clock: Clock) -> None:
    costs = LearningCostModel(MEASURED, clock=clock)
    feed(costs, clock, 2, 1, MEASURED.times[0].decode[1], 50)
    feed(costs, clock, 2, 1, 2.0, 1)
    clock.now += 2
    assert costs.model.times[0].decode[1] < 2 * MEASURED.times[0].decode[1]


def test_a_neighbour_is_noticed_and_forgotten_where_it_was_not_seen_again(clock: Clock) -> None:
    costs = LearningCostModel(MEASURED, clock=clock)
    two, one = MEASURED.times
    feed(costs, clock, 2, 1, two.decode[1], 100)
    feed(costs, clock, 2, 1, 5 * two.decode[1], 100)  # a neighbour makes two threads wait for each other
    assert costs.model.times[0].decode[1] > 3 * two.decode[1]
    for _ in range(60):  # one thread each is slower by less
        feed(costs, clock, 1, 1, 1.2 * one.decode[1], 50)
    assert costs.model.times[0].decode[1] > 3 * two.decode[1]
    assert costs.optimistic.times[0].decode[1] < 2 * two.decode[1], "two threads are worth another try"


def test_the_time_for_trials_of_widths_is_bounded() -> None:
    clock = Clock()
    scheduler = Scheduler(LearningCostModel(GUESS, clock=clock))
    scheduler.threads = 2
    for number in range(6):
        sequence = Sequence(number, CachedSequence(number), [0, 0], 1, 1 << 30)
        scheduler.add(sequence)
        scheduler.prefilled(sequence)
    spent = 0.0
    while clock.now < 300:
        trial = scheduler._trial > 0
        step = scheduler.schedule()
        taken = 0.02 * step.width
        trial = trial or scheduler._trial > 0
        clock.now += taken
        spent += taken * trial
        scheduler.observe(step, taken)
        for sequence, tokens in step.parts:
            sequence.computed += tokens
            sequence.tokens.append(0)
    longest = 4 * 6 * 0.02 * 6
    assert 0 < spent <= TRIAL_SECONDS + TRIAL_SHARE * clock.now + longest


@pytest.mark.parametrize("users", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["2 cores, fast memory, Q4_K_M", "2 cores, slow memory, Q4_0"])
def test_after_a_minute_the_throughput_is_near_that_of_the_best_fixed_configuration(name: str, users: int) -> None:
    machine = MACHINES[name]
    assert throughput(machine, learned(machine), users, UNTIL) > 0.95 * best(machine, users, UNTIL)


def test_a_neighbour_that_comes_and_goes_is_followed() -> None:
    machine = MACHINES["2 cores, fast memory, Q4_K_M"]
    came, left = 60.0, 120.0

    def slowness(now: float, working: int) -> float:
        return 1.0 if not came <= now < left else 6.0 if working == 1 else 1.3

    def rates(costs: object) -> tuple[float, float]:
        run = Run(machine, costs, 8, slowness)  # type: ignore[arg-type]
        run.run(came + 15)
        run.run(left)
        beside = run.rate(came + 15)
        run.run(left + 60)
        return beside, run.rate(left + 15)

    beside, after = rates(learned(machine))
    others = [rates(costs) for costs in fixed(machine)]
    assert beside > 0.9 * max(rate for rate, _ in others)
    assert after > 0.9 * max(rate for _, rate in others)
    assert min(rate for rate, _ in others) < 0.5 * beside, "the neighbour matters"


def test_other_numbers_of_engines_are_tried_for_a_short_time_only() -> None:
    machine = MACHINES["2 cores, fast memory, Q4_K_M"]
    run = Run(machine, learned(machine), 2, lambda *_: 1.0)
    run.run(200.0)
    assert run.rate(0.0) > 0.9 * best(machine, 2, 200.0)
    assert ENGINE_TRIAL_SECONDS <= 3


class Life:
    """A clock that shows seconds since the epoch, which go on while no process runs."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def reborn(costs: LearningCostModel, prior: CostModel, *, after: float) -> LearningCostModel:
    """Return what a process knows that starts `after` seconds later."""
    life = Life()
    life.now += after
    return LearningCostModel(prior, costs.learned(), clock=Clock(), wall=life)


@pytest.fixture
def taught(clock: Clock) -> LearningCostModel:
    """A cost model that has seen one step width, three times as slow as guessed."""
    costs = LearningCostModel(GUESS, clock=clock, wall=Life())
    feed(costs, clock, 2, 1, 3 * GUESS.times[0].decode[1], 20)
    return costs


@pytest.mark.parametrize("prior", [GUESS, MEASURED])
def test_the_next_process_starts_with_what_was_learned_whatever_its_prior(
    taught: LearningCostModel, prior: CostModel
) -> None:
    later = reborn(taught, prior, after=60)
    assert later.samples == 20
    assert later.model.times[0].decode[1] == pytest.approx(3 * GUESS.times[0].decode[1], rel=0.05)
    [step] = later.learned()
    assert (step.engines, step.threads, step.kind, step.rows, step.samples) == (1, 2, "decode", 1, 20)


def test_what_was_learned_before_gives_way_to_a_few_new_steps(taught: LearningCostModel) -> None:
    later = reborn(taught, GUESS, after=60)
    clock = later._clock
    assert isinstance(clock, Clock)
    feed(later, clock, 2, 1, GUESS.times[0].decode[1], FIRST)
    clock.now += 2
    assert later.model.times[0].decode[1] == pytest.approx(GUESS.times[0].decode[1], rel=0.3)


def test_what_was_learned_long_ago_is_worth_another_try(taught: LearningCostModel) -> None:
    soon, late = reborn(taught, GUESS, after=60), reborn(taught, GUESS, after=60 * 86_400)
    assert soon.optimistic.times[0].decode[1] == soon.model.times[0].decode[1]
    assert late.optimistic.times[0].decode[1] < late.model.times[0].decode[1]
    assert soon.observed_at(1) == 0
    assert late.observed_at(1) < 0


def test_what_was_learned_is_bounded_for_prompts_of_any_length(clock: Clock) -> None:
    costs = LearningCostModel(GUESS, clock=clock)
    for width in range(1, BATCH + 1):
        costs.observe(2, "prefill", width, 0.001 * width)
    assert len(costs.learned()) == len(GUESS.times[0].prefill)
    assert costs.samples == BATCH


def test_step_times_of_other_threads_than_this_machine_gives_an_engine_are_not_used(taught: LearningCostModel) -> None:
    [step] = taught.learned()
    foreign = msgspec.structs.replace(step, threads=7)
    assert LearningCostModel(GUESS, [foreign]).samples == 0
