"""That the soak's judge sees what grows: lives of days with figures that a test makes up."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import BOUNDS, FIRST, LEAST, Day, judged, kept_turns

EVEN = Day(
    minute=1.0, turns=800, first=0.02, late=0.05, resident=130_000_000, files=25, cache=60_000_000,
    conversations=3_000_000, kept=1000, unloads=4,
)  # fmt: skip
DAYS = FIRST + 8 * LEAST
"""Of a life in half an hour of four."""


def lives(field: str = "kept", *, day: float = 0.0, life: float = 0.0, days: int = DAYS) -> list[list[Day]]:
    """Four lives, in which a field grows by such shares of what it was from day to day, and from life to life."""
    value = getattr(EVEN, field)
    return [[replace(EVEN, **{field: value * (1 + day * d + life * n)}) for d in range(days)] for n in range(4)]


def test_equal_days_pass_and_each_exceeded_bound_is_reported_with_its_reason() -> None:
    table, well = judged(lives())
    assert well
    assert all(f"| {bound.title} | 1.00 | {bound.within:.2f} | 1.00 |" in table for bound in BOUNDS)
    assert all(bound.why in table for bound in BOUNDS)


@pytest.mark.parametrize(
    ("field", "day", "life"),
    [
        ("resident", 0.02, 0), ("files", 0.02, 0), ("cache", 0.1, 0), ("conversations", 0.05, 0), ("first", 0.1, 0),
        ("late", 0.3, 0),
        ("resident", 0, 0.1), ("files", 0, 0.05), ("cache", 0, 0.5), ("conversations", 0, 0.2), ("first", 0, 0.5),
    ],
)  # fmt: skip
def test_what_grows_within_each_life_or_from_life_to_life_is_too_much(field: str, day: float, life: float) -> None:
    table, well = judged(lives(field, day=day, life=life))
    assert not well
    assert table.count("too much") == 1


def test_conversations_that_are_kept_are_no_leak() -> None:
    kept = [replace(EVEN, conversations=EVEN.conversations * day, kept=EVEN.kept * day) for day in range(1, DAYS)]
    assert judged([kept] * 4)[1]


def test_what_is_loaded_once_is_no_leak() -> None:
    loading = [replace(EVEN, resident=EVEN.resident // 2, cache=0)] * FIRST
    assert judged([loading + life[FIRST:] for life in lives()])[1]


def test_memory_of_concurrent_work_is_no_leak() -> None:
    one, two, _, four = lives()
    assert judged([one, two, lives("late", day=1.0)[0], four])[1]


def test_less_than_before_is_well() -> None:
    assert judged(lives("resident", day=-0.01))[1]


def test_a_run_that_is_too_short_to_judge_does_not_pass() -> None:
    table, well = judged(lives(days=FIRST + LEAST - 1))
    assert not well
    assert "Too short" in table


def test_turns_that_are_kept_are_counted_with_those_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "conversations.db"
    with sqlite3.connect(path, isolation_level=None) as file:
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("CREATE TABLE records (sealed BLOB)")
        before, _ = kept_turns(path)
        file.executemany("INSERT INTO records VALUES (?)", [(bytes(100_000),)] * 3)
        size, turns = kept_turns(path)
    file.close()
    assert turns == 3
    assert 300_000 < size - before < 330_000
