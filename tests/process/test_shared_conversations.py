"""Conversations of gateways that share a Redis: seen, merged and deleted at all of them, through outages and losses."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from cache import Archive, Copies, KeyRing, Ledger, Progress
from cache.documents import TOMBSTONE_SECONDS
from gateway.auth.users import Users
from gateway.conversations.conversation import Entry
from gateway.conversations.directory import Conversations
from gateway.conversations.turns import Sessions
from tests.support.clock import Clock
from tests.support.redis_server import RedisServer
from tests.support.running import Gateway

SECRET = KeyRing.new()
ANSWER = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 3}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with RedisServer(tmp_path) as running:
        yield running


@asynccontextmanager
async def house(
    folder: Path, redis: RedisServer, clock: Callable[[], float] | None = None
) -> AsyncIterator[Conversations]:
    """The conversations of one of the gateways that share `redis`."""
    copies, ledger = Copies(redis.unix, SECRET, ttl=1e6), Ledger(redis.unix, SECRET)
    archive = Archive(folder / "conversations.db", SECRET, ttl=None, copies=copies, ledger=ledger, clock=clock)
    keeping = asyncio.create_task(archive.run())
    try:
        yield Conversations(Sessions(archive, "v1"))
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        archive.close()
        await asyncio.to_thread(copies.close)
        await asyncio.to_thread(ledger.close)


async def titles(conversations: Conversations, tenant: str = "anna") -> set[str]:
    """Titles of all conversations in the list."""
    page = await conversations.page(tenant, limit=100, after=None, newest_first=True)
    assert page is not None
    return {conversation.metadata["title"] for conversation in page[0]}


async def until(conversations: Conversations, wanted: set[str]) -> None:
    """Wait until the list has these titles."""
    for _ in range(500):
        if await titles(conversations) == wanted:
            return
        await asyncio.sleep(0.02)
    assert await titles(conversations) == wanted


async def make(conversations: Conversations, title: str) -> str:
    """A new conversation."""
    made = await conversations.create("anna", metadata={"title": title})
    assert made is not None
    return made.id


async def test_conversations_are_seen_and_deleted_at_all_gateways(tmp_path: Path, redis: RedisServer) -> None:
    async with house(tmp_path / "a", redis) as here, house(tmp_path / "b", redis) as there:
        first, second = await make(here, "first"), await make(there, "second")
        await until(here, {"first", "second"})
        await until(there, {"first", "second"})
        assert await titles(there, "bert") == set()
        assert await there.get("bert", first) is None
        assert await there.delete("anna", first) == []
        assert await here.get("anna", first) is None
        await here.update("anna", second, metadata={"title": "renamed"})
        await until(there, {"renamed"})
        assert await here.create("anna", metadata={}, id_=first) is None


async def test_changes_during_an_outage_are_merged(tmp_path: Path, redis: RedisServer) -> None:
    async with house(tmp_path / "a", redis) as here, house(tmp_path / "b", redis) as there:
        id_, other = await make(here, "tea"), await make(here, "other")
        await until(there, {"tea", "other"})
        redis.stop()
        await here.put_turn("anna", id_, Entry("resp_1", None, 0, 2, 1))
        await there.put_turn("anna", id_, Entry("resp_2", None, 0, 2, 2))
        await here.update("anna", id_, metadata={"title": "early"})
        await there.update("anna", id_, metadata={"title": "late"}, draft="and")
        await there.delete("anna", other)
        await here.update("anna", other, metadata={"title": "lost"})
        redis.start()
        for gateway in (here, there):
            await until(gateway, {"late"})
            for _ in range(500):
                found = await gateway.get("anna", id_)
                if found is not None and len(found.entries) == 2:
                    break
                await asyncio.sleep(0.02)
            assert found is not None
            assert [entry.id for entry in found.entries] == ["resp_1", "resp_2"]
            assert (found.head, found.draft) == ("resp_2", "and")


async def test_what_redis_loses_is_published_again(tmp_path: Path, redis: RedisServer) -> None:
    async with house(tmp_path / "a", redis) as here:
        await make(here, "kept")
        gone = await make(here, "gone")
        await here.delete("anna", gone)
    redis.stop()
    redis.start()
    async with house(tmp_path / "b", redis) as there:
        await make(there, "new")
        async with house(tmp_path / "a", redis) as here:
            await until(here, {"kept", "new"})
            await until(there, {"kept", "new"})
            assert await there.create("anna", metadata={}, id_=gone) is None


async def test_a_gateway_that_was_away_longer_than_tombstones_live_revives_nothing(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with house(tmp_path / "a", redis) as here:
        deleted = await make(here, "deleted")
        await make(here, "kept")
    shutil.copytree(tmp_path / "a", tmp_path / "away")
    with closing(sqlite3.connect(tmp_path / "away" / "conversations.db")) as connection, connection:
        connection.execute("UPDATE documents SET copied = copied - ?", (TOMBSTONE_SECONDS + 1,))
    clock = Clock(time.time())
    async with house(tmp_path / "a", redis, clock) as here:
        await here.delete("anna", deleted)
        clock.now += TOMBSTONE_SECONDS + 1
        await here._documents.sweep()
        async with house(tmp_path / "away", redis) as back:
            await until(back, {"kept"})
            assert await back.get("anna", deleted) is None
            await until(here, {"kept"})


async def test_turns_outlive_their_copies_at_every_gateway(tmp_path: Path, redis: RedisServer) -> None:
    async with house(tmp_path / "a", redis) as here, house(tmp_path / "b", redis) as there:
        await titles(there)
        id_ = await make(here, "tea")
        archive = here._sessions._archive
        await here.put_turn("anna", id_, Entry("resp_1", None, 0, 0, 1))
        await archive.put("anna", "resp_1", b"said", Progress.ENDED)
        await here.put_turn("anna", id_, Entry("resp_1", None, 0, 2, 1))
        for _ in range(500):
            if await there._sessions._archive.get_local("anna", "resp_1"):
                break
            await asyncio.sleep(0.02)
        assert await there._sessions._archive.get_local("anna", "resp_1") == b"said"


def said(gateway: Gateway, key: str, conversation: str) -> list[str]:
    """The texts of a conversation, as a gateway tells them."""
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{gateway.url}/v1/conversations/{conversation}/items?order=asc&limit=100"
    return [item["content"][0]["text"] for item in httpx.get(url, headers=headers, timeout=10).json()["data"]]


async def make_key(folder: Path, redis: RedisServer) -> str:
    """A key that is good at all gateways."""
    ledger = Ledger(redis.url, SECRET)
    users = Users(folder, ledger=ledger)
    key = await users.add("anna")
    users.close()
    ledger.close()
    return key


@pytest.mark.slow
async def test_two_devices_at_two_gateways_stay_in_step(tmp_path: Path, tiny_model: Path, redis: RedisServer) -> None:
    (tmp_path / "cache.key").write_text(SECRET.text)
    key = await make_key(tmp_path / "a", redis)
    shared = {"model": tiny_model, "context": 512, "cache": redis.url, "cache_key": tmp_path / "cache.key", "cores": 1}
    headers = {"Authorization": f"Bearer {key}"}
    with Gateway(tmp_path / "a", **shared) as here, Gateway(tmp_path / "b", **shared) as there:
        async with (
            connect(there.address, additional_headers=headers) as socket,
            httpx.AsyncClient(headers=headers, timeout=60) as client,
        ):
            events: list[dict[str, Any]] = []

            async def follow(kind: str) -> dict[str, Any]:
                async with asyncio.timeout(20):
                    while not events or events[-1]["type"] != kind:
                        events.append(json.loads(await socket.recv()))
                return events[-1]

            await socket.send(json.dumps({"type": "conversation.subscribe"}))
            await follow("conversation.subscribed")
            made = (await client.post(f"{here.url}/v1/conversations", json={"metadata": {"title": "茶"}})).json()
            assert (await follow("conversation.updated"))["conversation"]["id"] == made["id"]
            for gateway, text in ((here, "one"), (there, "two"), (here, "three")):
                body = {"input": text, "conversation": made["id"], **ANSWER}
                answer = await client.post(f"{gateway.url}/v1/responses", json=body)
                assert answer.status_code == 200, answer.text
            expected = ["one", "AAA", "two", "AAA", "three", "AAA"]
            for gateway in (here, there):
                assert await asyncio.to_thread(said, gateway, key, made["id"]) == expected
            last = answer.json()["id"]
            here.kill()
            assert await asyncio.to_thread(said, there, key, made["id"]) == expected
            here.start()
            assert (await client.delete(f"{here.url}/v1/conversations/{made['id']}")).status_code == 200
            assert (await follow("conversation.deleted"))["conversation_id"] == made["id"]
            for _ in range(200):
                if (await client.get(f"{there.url}/v1/responses/{last}")).status_code == 404:
                    break
                await asyncio.sleep(0.05)
            assert (await client.get(f"{there.url}/v1/responses/{last}")).status_code == 404
