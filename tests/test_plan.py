"""What follows from step times: engines, groups, padding; with the times of a real machine, and with any."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Plan, Times, heuristic, round_seconds, seconds
from engine.errors import ModelLoadError
from engine.plan import WIDEST, groups, padded
from engine.tuning import measure
from tests.plans import MEASURED

TWO_THREADS, ONE_THREAD = MEASURED.times

tables = st.dictionaries(st.integers(1, 32), st.floats(1e-4, 1.0), min_size=1)


def test_few_spread_over_engines_and_many_share_one() -> None:
    assert [MEASURED.engines(n) for n in (1, 2, 3, 4, 6, 8, 16)] == [1, 2, 2, 2, 2, 1, 1]


def test_a_change_that_gains_little_is_not_worth_its_moves() -> None:
    assert MEASURED.rate(1, 8) > MEASURED.rate(2, 8)
    closer = Plan(cores=2, times=[TWO_THREADS, faster(ONE_THREAD, 1.1)], measured=True)
    assert closer.rate(1, 8) > closer.rate(2, 8)
    assert (closer.engines(8, working=2), closer.engines(8, working=1)) == (2, 1)


def faster(times: Times, factor: float) -> Times:
    decode = {width: taken / factor for width, taken in times.decode.items()}
    return Times(engines=times.engines, threads=times.threads, decode=decode, prefill=times.prefill)


def test_a_step_of_six_is_slower_than_one_of_eight_so_it_is_padded() -> None:
    assert [padded(TWO_THREADS, n) for n in (1, 6, 7, 8, 9, 13)] == [1, 8, 8, 8, 12, 16]
    assert groups(TWO_THREADS, 2) == (1, 1)
    assert groups(TWO_THREADS, 4) == (4,)
    assert groups(ONE_THREAD, 4) == (1, 1, 1, 1)
    assert groups(TWO_THREADS, 24) == (16, 8)


def test_the_plan_of_an_engine_follows_from_the_threads_that_it_has() -> None:
    assert MEASURED.at(1) is ONE_THREAD
    assert MEASURED.at(2) is TWO_THREADS
    assert MEASURED.at(7) is TWO_THREADS
    assert MEASURED.limited(1).engines(4) == 1


@given(tables, st.integers(1, 40))
def test_a_round_gives_everyone_one_token_and_no_other_round_is_faster_than_one_by_one(
    decode: dict[int, float], sequences: int
) -> None:
    times = Times(engines=1, threads=1, decode=decode, prefill=decode)
    widths = groups(times, sequences)
    assert sum(widths) == sequences
    assert all(1 <= width <= padded(times, width) <= WIDEST for width in widths)
    assert round_seconds(times, sequences) <= sequences * seconds(decode, 1) * (1 + 1e-9)


@given(tables, st.integers(1, 64))
def test_times_between_measured_widths_lie_between_their_times(table: dict[int, float], width: int) -> None:
    inside = min(table) <= width <= max(table)
    assert not inside or min(table.values()) <= seconds(table, width) <= max(table.values())


@given(st.integers(10**6, 10**11), st.integers(1, 64))
def test_the_plan_of_an_ordinary_machine_is_usable_for_any_model_and_cores(weights: int, cores: int) -> None:
    plan = heuristic(weights, cores, min(cores, 4))
    assert all(times.engines * times.threads <= cores for times in plan.times)
    assert 1 <= plan.engines(5) <= cores
    assert 1 <= plan.most() <= WIDEST
    assert plan.deadline() > 0


def test_a_machine_is_measured_within_its_cores(tiny_model: Path) -> None:
    told: list[float] = []
    plan = measure(tiny_model, cores=2, engines=2, budget=0.5, progress=lambda share, _: told.append(share))
    assert [(times.engines, times.threads) for times in plan.times] == [(1, 2), (2, 1)]
    assert all(taken > 0 for times in plan.times for taken in (*times.decode.values(), *times.prefill.values()))
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_model_that_cannot_be_measured_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError):
        measure(tmp_path / "bad.gguf", cores=1, engines=1, budget=0.1, progress=lambda *_: None)
