"""Conversations expire by the time that was seen to pass, and by no jump of the system clock."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cache import Archive, KeyRing, Progress
from cache.clock import DAY, ElapsedClock, Reading
from tests.support.clock import Clock

KEYS = KeyRing.new()
WEEK = 7 * DAY
YEARS = 3650 * DAY
NOW = 1_800_000_000.0


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the system clock so many seconds ahead; processes that start then see that time."""
    real = time.time

    return lambda seconds: monkeypatch.setattr(time, "time", lambda: real() + seconds)


def open_archive(folder: Path) -> Archive:
    """The archive as a gateway opens it."""
    return Archive(folder / "conversations.db", KEYS, ttl=WEEK)


async def restart_and_get(folder: Path) -> bytes | None:
    """What a gateway that starts now has of the one conversation, after a sweep."""
    archive = open_archive(folder)
    try:
        await archive.sweep()
        return await archive.get("alice", "resp_1")
    finally:
        archive.close()


async def store(folder: Path) -> None:
    """Store the one conversation."""
    archive = open_archive(folder)
    await archive.put("alice", "resp_1", b"hello", Progress.ENDED)
    archive.close()


async def test_a_start_with_the_clock_years_ahead_deletes_nothing_and_warns_once(
    tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    await store(tmp_path)
    set_clock(YEARS)
    with capture_logs() as logs:
        assert await restart_and_get(tmp_path) == b"hello"
        assert await restart_and_get(tmp_path) == b"hello"
    assert [(line["log_level"], round(line["days"])) for line in logs] == [("warning", 3650)]
    assert "set it" in logs[0]["advice"]
    set_clock(0)
    assert await restart_and_get(tmp_path) == b"hello"


async def test_a_file_of_an_older_version_survives_a_start_with_the_clock_years_ahead(
    tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    await store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "conversations.db")) as connection:
        connection.execute("DROP TABLE clock")
    set_clock(YEARS)
    assert await restart_and_get(tmp_path) == b"hello"
    set_clock(0)
    assert await restart_and_get(tmp_path) == b"hello"


async def test_a_conversation_expires_after_plausible_pauses_that_add_up_to_its_time(
    tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    await store(tmp_path)
    left = []
    for days in (3, 6, 9):
        set_clock(days * DAY)
        archive = open_archive(tmp_path)
        await archive.sweep()
        left.append(len(await archive._database.run("SELECT id FROM records")))
        archive.close()
    assert left == [1, 1, 0]


@pytest.mark.parametrize("jump", [YEARS, -YEARS, 2 * 3600.0])
def test_a_jump_while_the_gateway_runs_counts_as_nothing(jump: float) -> None:
    wall, steady = Clock(NOW), Clock(5.0)
    clock = ElapsedClock(None, longest=DAY, wall=wall, steady=steady)
    wall.now += jump
    steady.now += 60
    assert clock() == NOW + 60


@pytest.mark.parametrize(
    ("pause", "counted"), [(0, 0), (3600, 3600), (DAY, DAY), (DAY + 1, 0), (YEARS, 0), (-3600, 0), (-YEARS, 0)]
)
def test_a_pause_between_two_processes_counts_if_it_is_plausible(pause: float, counted: float) -> None:
    clock = ElapsedClock(Reading(NOW, 1000.0), longest=DAY, wall=Clock(NOW + pause), steady=Clock(7.0))
    assert clock() == 1000 + counted
    assert clock.jump == (pause if pause > DAY else 0)
    assert clock.read() == Reading(NOW + pause, 1000.0 + counted)
