"""Conversations on disk: they outlive the process, and no tenant reads another's."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from cache import Archive, KeyRing, StoreError
from gateway.conversations.turns import Sessions, Turn
from gateway.protocol.items import text_item
from gateway.protocol.response_events import LATER_FIELDS

TURN = Turn(
    id="resp_1",
    previous=None,
    created_at=1,
    began=1,
    instructions=None,
    items=[text_item("茶炊", item_id="msg_1")],
    input=0,
    response={**LATER_FIELDS, "id": "resp_1", "status": "completed"},
)
IDS = [1, 151_935, 7]
KEYS = KeyRing.new()


def open_sessions(path: Path, vocabulary: str) -> Sessions:
    """The sessions that a gateway with this key finds in `path`."""
    return Sessions(Archive(path, KEYS, ttl=1e6), vocabulary)


async def test_a_turn_is_there_after_a_restart(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "state" / "conversations.db", "v1")
    await sessions.add("anonymous", TURN, IDS)
    sessions.close()
    again = open_sessions(tmp_path / "state" / "conversations.db", "v1")
    assert await again.get("anonymous", "resp_1") == (TURN, IDS)
    again.close()


async def test_a_response_of_an_earlier_version_has_all_fields_of_this_one(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "c.db", "v1")
    earlier = {"id": "resp_1", "status": "completed", "user": "ada"}
    await sessions.add("one", replace(TURN, response=earlier), IDS)
    found = await sessions.get("one", "resp_1")
    assert found is not None
    assert found[0].response == {**LATER_FIELDS, **earlier}
    sessions.close()


async def test_another_tenant_and_an_unknown_id_find_the_same_nothing(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "c.db", "v1")
    await sessions.add("one", TURN, IDS)
    assert await sessions.get("two", "resp_1") is None
    assert await sessions.get("one", "resp_2") is None
    sessions.close()


async def test_ids_of_another_vocabulary_are_not_used(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "c.db", "v1")
    await sessions.add("one", TURN, IDS)
    sessions.close()
    other = open_sessions(tmp_path / "c.db", "v2")
    assert await other.get("one", "resp_1") == (TURN, None)
    other.close()


async def test_a_second_turn_with_the_same_id_is_rejected_and_the_first_remains(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "c.db", "v1")
    await sessions.add("one", TURN, IDS)
    with pytest.raises(StoreError):
        await sessions.add("one", TURN, [9])
    assert await sessions.get("one", "resp_1") == (TURN, IDS)
    sessions.close()


async def test_a_turn_left_unended_is_marked_at_the_next_start(tmp_path: Path) -> None:
    growing = text_item("茶", item_id="msg_1", status="in_progress")
    running = replace(TURN, items=[growing], response={"id": "resp_1", "status": "in_progress", "output": [growing]})
    sessions = open_sessions(tmp_path / "c.db", "v1")
    await sessions.begin("one", replace(running, items=[], response={**running.response, "output": []}))
    await sessions.begin("one", running, IDS)
    sessions.close()
    again = open_sessions(tmp_path / "c.db", "v1")
    assert await again.mark_interrupted() == 1
    assert await again.mark_interrupted() == 0
    found = await again.get("one", "resp_1")
    assert found is not None
    turn, ids = found
    assert turn.response["status"] == "incomplete"
    assert turn.response["incomplete_details"]["reason"] == "interrupted"
    assert turn.items == turn.response["output"] == [text_item("茶", item_id="msg_1", status="incomplete")]
    assert ids == IDS
    again.close()


async def test_a_turn_that_could_not_be_marked_at_the_start_is_when_somebody_asks_for_it(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "c.db", "v1")
    await sessions.begin("one", replace(TURN, response={"id": "resp_1", "status": "in_progress", "output": []}))
    found = await sessions.get("one", "resp_1")
    assert found is not None
    assert found[0].response["incomplete_details"]["reason"] == "interrupted"
    assert await sessions.mark_interrupted() == 0
    sessions.close()


async def test_a_gateway_taken_for_dead_may_still_end_its_turn(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "c.db", "v1")
    await sessions.begin("one", replace(TURN, response={"id": "resp_1", "status": "in_progress", "output": []}))
    await sessions.mark_interrupted()
    await sessions.add("one", TURN, IDS)
    assert await sessions.get("one", "resp_1") == (TURN, IDS)
    assert await sessions.mark_interrupted() == 0
    sessions.close()


async def test_only_its_owner_can_delete_a_turn(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "c.db", "v1")
    await sessions.add("one", TURN, IDS)
    assert not await sessions.delete("two", "resp_1")
    assert await sessions.delete("one", "resp_1")
    assert not await sessions.delete("one", "resp_1")
    assert await sessions.get("one", "resp_1") is None
    sessions.close()


async def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    sessions = open_sessions(tmp_path / "c.db", "v1")
    assert stat.S_IMODE((tmp_path / "c.db").stat().st_mode) == 0o600
    sessions.close()


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"c\.db can't be opened"):
        open_sessions(tmp_path / "c.db", "v1")
