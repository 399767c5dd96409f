"""Documents and their members: turns of a conversation live as long as it does, and leave with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache import Archive, DocumentGoneError, Edit, KeyRing, Progress
from cache import quota as cache_quota
from tests.support.clock import Clock

KEYS = KeyRing.new()
TTL = 100.0
DAY = 86_400.0


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
async def archive(tmp_path: Path, clock: Clock) -> AsyncIterator[Archive]:
    opened = Archive(tmp_path / "conversations.db", KEYS, ttl=TTL, tenant_bytes=10_000, clock=clock)
    yield opened
    opened.close()


async def put(archive: Archive, document: str, *turns: str, body: bytes = b"x", redundant: bool = False) -> None:
    """Change a document, and store turns as its members."""
    edit = Edit(body, 1, [(turn, redundant) for turn in turns])
    assert await archive.documents.edit("anna", document, lambda _: edit) == body
    for turn in turns:
        assert await archive.put("anna", turn, bytes(1000), Progress.ENDED)


async def left(archive: Archive) -> list[str]:
    """Turns that can be read."""
    names = [f"resp_{number}" for number in range(20)]
    return [name for name in names if await archive.get("anna", name) is not None]


async def test_a_turn_expires_with_its_conversation_and_not_before(archive: Archive, clock: Clock) -> None:
    await put(archive, "conv_1", "resp_1")
    await archive.put("anna", "resp_2", b"alone", Progress.ENDED)
    clock.now += TTL / 2
    await archive.documents.edit("anna", "conv_1", lambda _: Edit(b"y", 2, [("resp_1", False)]))
    clock.now += TTL / 2 + 1
    await archive.sweep()
    assert await left(archive) == ["resp_1"]
    assert await archive.documents.get("anna", "conv_1") == b"y"
    clock.now += TTL
    await archive.sweep()
    assert await archive.documents.get("anna", "conv_1") is None
    assert await archive.documents.orphans(10) == [("anna", "resp_1")], "the gateway deletes it with its KV blocks"


async def test_what_is_crowded_out_is_whole_and_the_oldest(archive: Archive) -> None:
    await put(archive, "conv_1", "resp_1", "resp_2")
    await put(archive, "conv_2", "resp_3", redundant=True)
    await put(archive, "conv_2", "resp_4", body=b"changed")
    await archive.put("anna", "resp_5", bytes(1000), Progress.ENDED)
    await put(archive, "conv_1", body=b"changed again")
    assert await archive.put("anna", "resp_6", bytes(6_000), Progress.ENDED)
    assert await left(archive) == ["resp_1", "resp_2", "resp_5", "resp_6"], "the redundant one, then conv_2"
    assert await archive.documents.get("anna", "conv_2") is None
    assert await archive.put("anna", "resp_7", bytes(1_500), Progress.ENDED)
    assert await left(archive) == ["resp_1", "resp_2", "resp_6", "resp_7"], "a turn without a conversation is older"
    assert await archive.documents.get("anna", "conv_1") == b"changed again"


async def test_the_conversations_of_a_user_are_limited_in_number(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_quota, "MAX_DOCUMENTS", 2)
    for number in range(4):
        await put(archive, f"conv_{number}", f"resp_{number}")
    assert await archive.documents.get("anna", "conv_1") is None
    assert await left(archive) == ["resp_2", "resp_3"]


async def test_nothing_is_stored_in_a_deleted_conversation(archive: Archive) -> None:
    await put(archive, "conv_1", "resp_1")
    assert await archive.documents.delete("anna", "conv_1") == ["resp_1"]
    assert not await archive.put("anna", "resp_1", b"late", Progress.RUNNING)
    with pytest.raises(DocumentGoneError):
        await archive.documents.edit("anna", "conv_1", lambda _: Edit(b"y", 2))
    assert await archive.documents.delete("anna", "conv_1") is None
