"""The cost model: engines, groups and padding for measured and arbitrary step times, and the measurement itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import CostModel, StepTimes, heuristic, round_seconds, seconds
from engine.cost_model import WIDEST, Kind, groups, padded
from engine.errors import ModelLoadError
from engine.llama import Context, Model
from engine.stopwatch import HISTORY, Question, Stopwatch, timed
from engine.tuning import PASSES, Watch, measure
from tests.support.clock import Clock
from tests.support.plans import MEASURED

TWO_THREADS, ONE_THREAD = MEASURED.times

LOAD = 7.0
"""Seconds that the simulated machine takes to load a model."""

tables = st.dictionaries(st.integers(1, 32), st.floats(1e-4, 1.0), min_size=1)


def test_few_sequences_use_several_engines_and_many_share_one() -> None:
    assert [MEASURED.engines(n) for n in (1, 2, 3, 4, 6, 8, 16)] == [1, 2, 2, 2, 2, 1, 1]


def test_a_small_gain_does_not_change_the_number_of_engines() -> None:
    assert MEASURED.rate(1, 8) > MEASURED.rate(2, 8)
    closer = CostModel(cores=2, times=[TWO_THREADS, faster(ONE_THREAD, 1.1)], measured=True)
    assert closer.rate(1, 8) > closer.rate(2, 8)
    assert (closer.engines(8, working=2), closer.engines(8, working=1)) == (2, 1)


def faster(times: StepTimes, factor: float) -> StepTimes:
    decode = {width: taken / factor for width, taken in times.decode.items()}
    return StepTimes(engines=times.engines, threads=times.threads, decode=decode, prefill=times.prefill)


def test_a_step_of_six_is_padded_to_eight_because_eight_is_faster() -> None:
    assert [padded(TWO_THREADS, n) for n in (1, 6, 7, 8, 9, 13)] == [1, 8, 8, 8, 12, 16]
    assert groups(TWO_THREADS, 2) == (1, 1)
    assert groups(TWO_THREADS, 4) == (4,)
    assert groups(ONE_THREAD, 4) == (1, 1, 1, 1)
    assert groups(TWO_THREADS, 24) == (16, 8)


def test_the_step_times_of_an_engine_depend_on_its_threads() -> None:
    assert MEASURED.at(1) is ONE_THREAD
    assert MEASURED.at(2) is TWO_THREADS
    assert MEASURED.at(7) is TWO_THREADS
    assert MEASURED.limited(1).engines(4) == 1


@given(tables, st.integers(1, 40))
def test_a_round_gives_each_sequence_one_token_and_is_no_slower_than_single_steps(
    decode: dict[int, float], sequences: int
) -> None:
    times = StepTimes(engines=1, threads=1, decode=decode, prefill=decode)
    widths = groups(times, sequences)
    assert sum(widths) == sequences
    assert all(1 <= width <= padded(times, width) <= WIDEST for width in widths)
    assert round_seconds(times, sequences) <= sequences * seconds(decode, 1) * (1 + 1e-9)


@given(tables, st.integers(1, 64))
def test_interpolated_times_lie_between_the_measured_ones(table: dict[int, float], width: int) -> None:
    inside = min(table) <= width <= max(table)
    assert not inside or min(table.values()) <= seconds(table, width) <= max(table.values())


@given(st.integers(10**6, 10**11), st.integers(1, 64))
def test_the_heuristic_cost_model_is_valid_for_any_model_and_cores(weights: int, cores: int) -> None:
    plan = heuristic(weights, cores, min(cores, 4))
    assert all(times.engines * times.threads <= cores for times in plan.times)
    assert 1 <= plan.engines(5) <= cores
    assert 1 <= plan.most() <= WIDEST
    assert plan.deadline() > 0


def test_a_measurement_uses_no_more_threads_than_cores(tiny_model: Path) -> None:
    reports: list[float] = []
    plan = measure(tiny_model, cores=2, engines=2, budget=0.5, progress=lambda share, _: reports.append(share))
    assert [(times.engines, times.threads) for times in plan.times] == [(1, 2), (2, 1)]
    assert all(taken > 0 for times in plan.times for taken in (*times.decode.values(), *times.prefill.values()))
    assert reports == sorted(reports)
    assert reports[-1] == 1.0


def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError):
        measure(tmp_path / "bad.gguf", cores=1, engines=1, budget=0.1, progress=lambda *_: None)


class Machine:
    """A simulated machine whose steps take the measured times, multiplied by a factor. Its watches work at once."""

    def __init__(self, factor: float) -> None:
        self.clock = Clock(1000.0)
        self.factor = factor
        self.watches: list[FakeWatch] = []
        self.asked: list[tuple[int, Kind, int]] = []

    def watch(self, _: Path) -> Watch:
        self.watches.append(FakeWatch(self))
        return self.watches[-1]

    def seconds(self, question: Question) -> float:
        times = MEASURED.at(question.threads)
        return self.factor * (times.decode if question.kind == "decode" else times.prefill)[question.width]

    def measure(self, model: Path, budget: float, cores: int = 2) -> tuple[CostModel, list[tuple[float, float]]]:
        """Return the cost model, and each reported share of progress with the seconds until then."""
        reports: list[tuple[float, float]] = []
        started = self.clock()
        plan = measure(
            model, cores=cores, engines=cores, budget=budget, clock=self.clock, watch=self.watch,
            progress=lambda share, _: reports.append((share, self.clock() - started)),
        )  # fmt: skip
        return plan, reports


class FakeWatch(Watch):
    """A watch that measures with the clock of its machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._question: Question | None = None

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, question: Question) -> None:
        self._question = question

    def wait(self) -> str:
        machine, question = self._machine, self._question
        if question is None:
            machine.clock.now += LOAD
            return "ready"
        taken = machine.seconds(question)

        def step() -> None:
            machine.clock.now += taken

        if self is machine.watches[0]:  # the others run at the same time
            machine.asked.append((question.threads, question.kind, question.width))
            timed(step, question.budget, machine.clock)
        return str(taken)


@pytest.mark.parametrize("factor", [0.1, 1, 10, 100])
@pytest.mark.parametrize("budget", [1, 20, 60])
def test_tuning_ends_when_its_budget_is_spent(tiny_model: Path, factor: float, budget: float) -> None:
    plan, reports = Machine(factor).measure(tiny_model, budget)
    # For each number of engines: a load, a first step that the budget does not count, and at least one that it counts.
    least = 2 * LOAD + 2 * factor * sum(times.decode[1] for times in MEASURED.times)
    assert reports[-1][0] == 1.0
    assert reports[-1][1] <= 1.1 * budget + least
    for times, real in zip(plan.times, MEASURED.times, strict=True):
        assert times.decode[1] == pytest.approx(factor * real.decode[1])
        # Extrapolated times have the right order of magnitude.
        for width in (4, 8, 16):
            assert 0.3 < seconds(times.decode, width) / (factor * real.decode[width]) < 3
        assert 0.3 < seconds(times.prefill, 256) / (factor * real.prefill[256]) < 3


def test_the_default_budget_allows_two_full_passes_on_two_cores(tiny_model: Path) -> None:
    machine = Machine(1)
    plan, _ = machine.measure(tiny_model, 60)
    for times, real in zip(plan.times, MEASURED.times, strict=True):
        assert {w: t for w, t in times.decode.items() if w <= WIDEST} == {
            w: t for w, t in real.decode.items() if w <= WIDEST
        }
        assert times.prefill == real.prefill
    assert all(machine.asked.count(question) >= PASSES for question in machine.asked)


def test_progress_is_the_share_of_the_budget_spent(tiny_model: Path) -> None:
    _, reports = Machine(1).measure(tiny_model, 40, cores=1)
    loaded = reports[0][1]
    assert loaded >= LOAD
    assert [share for share, _ in reports[:-1]] == pytest.approx([(now - loaded) / 40 for _, now in reports[:-1]])


def test_a_history_is_computed_once_and_unused_sequences_are_empty(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    lengths: list[list[int]] = []
    decode = Context.decode

    def counted(context: Context, entries: list[tuple[int, int, int, bool]]) -> None:
        decode(context, entries)
        steps.append(len(entries))
        lengths.append([context.length(sequence) for sequence in range(WIDEST + 1)])

    stopwatch = Stopwatch(Model(tiny_model))
    monkeypatch.setattr(Context, "decode", counted)
    questions: list[tuple[Kind, int]] = [("decode", 8), ("decode", 2), ("prefill", 16), ("decode", 16)]
    for kind, width in questions:
        stopwatch.time(Question(kind, 1, width, 0.0))
    assert steps == [HISTORY, 8, 2, 16, 16]
    assert lengths[2] == [HISTORY + 1] * 2 + [0] * (WIDEST - 1)
    assert lengths[3] == [0] * WIDEST + [16]
    assert lengths[4] == [HISTORY + 1] * WIDEST + [0]


@pytest.mark.parametrize("when", ["asked", "waited for"])
def test_a_killed_stopwatch_is_reported(tiny_model: Path, when: str) -> None:
    question = Question("decode", 1, 1, 60.0)
    with Watch(tiny_model) as watch:
        watch.wait()
        if when == "waited for":
            watch.ask(question)
        os.kill(watch.pid, signal.SIGKILL)
        os.waitid(os.P_PID, watch.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ModelLoadError, match=r"ended during a measurement \(SIGKILL\)"):
            watch.ask(question) if when == "asked" else watch.wait()
