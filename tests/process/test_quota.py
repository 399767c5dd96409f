"""The storage quota: a user's oldest turns are deleted first, the user is notified, and their space is freed."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cache import Archive, KeyRing, Progress, quota
from tests.support.running import Gateway
from tests.support.stored_state import unpack

KEYS = KeyRing.new()
BODY = bytes(1000)
ROOM = 5 * 1100
"""For five bodies of one tenant."""


def open_archive(folder: Path, room: int | None = ROOM) -> Archive:
    """An archive with so much room for each tenant."""
    return Archive(folder / "conversations.db", KEYS, ttl=None, tenant_bytes=room)


@pytest_asyncio.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    """One that is closed after the test."""
    opened = open_archive(tmp_path)
    yield opened
    opened.close()


async def store(archive: Archive, tenant: str, count: int) -> None:
    """Store so many turns."""
    for n in range(count):
        assert await archive.put(tenant, f"resp_{n}", BODY, Progress.RUNNING)
        assert await archive.put(tenant, f"resp_{n}", BODY, Progress.ENDED)


async def left(archive: Archive, tenant: str) -> list[int]:
    """Numbers of the turns that are there."""
    return [n for n in range(100) if await archive.get(tenant, f"resp_{n}") is not None]


def bookkeeping(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by tenant: as the file counts them, and as they lie there."""
    with closing(sqlite3.connect(folder / "conversations.db")) as connection:
        counted = dict(connection.execute("SELECT tenant, bytes FROM usage WHERE bytes != 0").fetchall())
        real = connection.execute("SELECT tenant, sum(length(sealed)) FROM records GROUP BY tenant").fetchall()
    return counted, dict(real)


async def test_the_quota_deletes_the_oldest_turns_of_that_user_only(tmp_path: Path, archive: Archive) -> None:
    await store(archive, "bob", 3)
    await store(archive, "alice", 8)
    assert await left(archive, "alice") == [3, 4, 5, 6, 7]
    assert await left(archive, "bob") == [0, 1, 2]
    assert await archive.take_dropped("alice") == 3
    assert [await archive.take_dropped(tenant) for tenant in ("alice", "bob", "nobody")] == [0, 0, 0]
    await archive.delete("alice", "resp_5")
    counted, real = bookkeeping(tmp_path)
    assert counted == real


async def test_a_turn_larger_than_the_quota_stays_until_the_next_turn(archive: Archive) -> None:
    await store(archive, "alice", 2)
    assert await archive.put("alice", "resp_8", bytes(2 * ROOM), Progress.ENDED)
    assert await left(archive, "alice") == [8]
    assert await archive.put("alice", "resp_9", BODY, Progress.ENDED)
    assert await left(archive, "alice") == [9]


async def test_the_whole_file_is_bounded_and_the_largest_user_loses_turns(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "FULL_TENANTS", 2)
    await store(archive, "alice", 5)
    await store(archive, "bob", 2)
    await store(archive, "carol", 4)
    assert [len(await left(archive, tenant)) for tenant in ("alice", "bob", "carol")] == [4, 2, 4]
    assert [await archive.take_dropped(tenant) for tenant in ("alice", "bob", "carol")] == [1, 0, 0]


async def test_a_file_beyond_its_quota_at_the_start_is_cut_and_shrunk(tmp_path: Path) -> None:
    roomy = open_archive(tmp_path, None)
    await store(roomy, "alice", 90)
    roomy.close()
    before = (tmp_path / "conversations.db").stat().st_size
    archive = open_archive(tmp_path)
    await archive.sweep()
    assert await left(archive, "alice") == [85, 86, 87, 88, 89]
    archive.close()
    assert (tmp_path / "conversations.db").stat().st_size < before / 2


def test_what_d346b13_stored_is_counted_and_can_be_evicted(tmp_path: Path) -> None:
    unpack(tmp_path / "state")
    keys = KeyRing.load(tmp_path / "state" / "cache.key")
    Archive(tmp_path / "state" / "conversations.db", keys, ttl=None).close()
    counted, real = bookkeeping(tmp_path / "state")
    assert counted == real != {}
    with closing(sqlite3.connect(tmp_path / "state" / "conversations.db")) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)


async def test_a_conversation_expires_only_with_a_time_to_live(tmp_path: Path) -> None:
    now = 1_800_000_000.0

    def at(days: float, ttl: float | None) -> Archive:
        return Archive(tmp_path / "c.db", KEYS, ttl=ttl, clock=lambda: now + days * 86_400)

    found: list[bool] = []
    for days, ttl in ((0, None), (1000, None), (1001, 86_400.0), (1001.5, 86_400.0), (1003, 86_400.0)):
        archive = at(days, ttl)
        if not found:
            await archive.put("alice", "resp_1", BODY, Progress.ENDED)
        await archive.sweep()
        found.append(await archive.get("alice", "resp_1") is not None)
        archive.close()
    assert found == [True, True, True, True, False]


@pytest.mark.slow
async def test_a_user_is_notified_of_turns_that_went(tmp_path: Path, tiny_model: Path) -> None:
    pad = {chr(0x1F600 + n) * 64: "😀" * 512 for n in range(16)}  # as much as a request may bring along
    fields: dict[str, Any] = {"max_output_tokens": 2, "metadata": pad}
    with Gateway(tmp_path, model=tiny_model, context=512, user_storage="1MiB") as gateway:
        async with gateway.connect() as conversation:
            responses = [(await conversation.ask("x", **fields))[-1].response for _ in range(30)]
        dropped = [getattr(response, "samovar", {"dropped_turns": 0})["dropped_turns"] for response in responses]
        assert dropped[0] == 0
        assert dropped[-1] == 1
        gone = sum(dropped)
        statuses = [gateway.get(f"/v1/responses/{response.id}").status_code for response in responses]
        # The latest responses are served from memory for a while, the others from the database.
        continued = gateway.post("/v1/responses", {"input": "x", "previous_response_id": responses[0].id})
        assert continued.json()["error"]["code"] == "previous_response_not_found"
        assert statuses[gone:] == [200] * (30 - gone)
        assert f"samovar_dropped_turns_total {gone:.1f}" in gateway.get("/metrics").text
