"""Conversations on disk: they outlive the process, and nobody reads another's."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cache import StoreError
from gateway.sessions import Sessions, Turn

TURN = Turn("resp_1", None, 1, 1, None, [{"role": "user", "content": "茶炊"}], {"id": "resp_1"})
IDS = [1, 151_935, 7]


async def test_a_turn_is_there_after_a_restart(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "state" / "conversations.db", "v1")
    await sessions.add("anonymous", TURN, IDS)
    sessions.close()
    again = Sessions(tmp_path / "state" / "conversations.db", "v1")
    assert await again.get("anonymous", "resp_1") == (TURN, IDS)
    again.close()


async def test_another_tenant_and_an_unknown_id_find_the_same_nothing(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "c.db", "v1")
    await sessions.add("one", TURN, IDS)
    assert await sessions.get("two", "resp_1") is None
    assert await sessions.get("one", "resp_2") is None
    sessions.close()


async def test_ids_of_another_vocabulary_are_not_used(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "c.db", "v1")
    await sessions.add("one", TURN, IDS)
    sessions.close()
    other = Sessions(tmp_path / "c.db", "v2")
    assert await other.get("one", "resp_1") == (TURN, None)
    other.close()


async def test_a_second_turn_of_the_same_id_is_refused_and_the_first_kept(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "c.db", "v1")
    await sessions.add("one", TURN, IDS)
    with pytest.raises(StoreError):
        await sessions.add("one", TURN, [9])
    assert await sessions.get("one", "resp_1") == (TURN, IDS)
    sessions.close()


async def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "c.db", "v1")
    assert stat.S_IMODE((tmp_path / "c.db").stat().st_mode) == 0o600
    sessions.close()


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"c\.db can't be opened"):
        Sessions(tmp_path / "c.db", "v1")
