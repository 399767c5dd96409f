"""What is deleted stays deleted: at every gateway, through outages of the store, and through restarts of either."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from cache import Archive, Block, Chain, Copies, KeyRing, PrefixCache, Progress, RedisStore, Stored
from cache.circuit_breaker import CircuitBreaker
from cache.sqlite import SqliteStore
from engine.kv.connector import KVConnector
from engine.kv.manager import CachedSequence
from tests.support.redis_server import RedisServer
from tests.support.running import Gateway

KEYS = KeyRing.new()
SAID = b"nobody may know of the samovar"
LONG = "In the kitchen stands a samovar, and nobody may know of it. " * 3
ANSWER = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 5}
"""The tiny model says A."""


@asynccontextmanager
async def archive(folder: Path, server: RedisServer) -> AsyncIterator[Archive]:
    """The archive of one gateway, with its background work."""
    copies = Copies(server.unix, KEYS, ttl=1e6)
    opened = Archive(folder / "conversations.db", KEYS, ttl=None, copies=copies)
    keeping = asyncio.create_task(opened.run())
    try:
        yield opened
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        opened.close()
        await asyncio.to_thread(copies.close)


async def until(true: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    for _ in range(1000):
        if await asyncio.to_thread(true):
            return
        await asyncio.sleep(0.03)
    raise AssertionError("it did not happen")


async def until_gone(one: Archive, id_: str) -> None:
    """Wait until an archive does not have a record any more."""
    for _ in range(1000):
        if await one.get("alice", id_) is None:
            return
        await asyncio.sleep(0.03)
    raise AssertionError(f"{id_} is still there")


def tombstones(folder: Path) -> list[str]:
    """Ids that a gateway knows to be deleted and has published."""
    with closing(sqlite3.connect(folder / "conversations.db")) as connection:
        rows = connection.execute("SELECT id FROM records WHERE progress = 3 AND copied > 0 AND sealed = x''")
        return [id_ for (id_,) in rows]


def contents(folder: Path) -> int:
    """How many records with contents lie in a gateway's file."""
    with closing(sqlite3.connect(folder / "conversations.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM records WHERE progress < 3").fetchone()[0])


@pytest.mark.slow
async def test_a_redis_that_restarts_empty_brings_no_deleted_record_back(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with archive(tmp_path / "a", server) as one, archive(tmp_path / "b", server) as two:
            await one.put("alice", "resp_1", SAID, Progress.ENDED)
            await one.put("alice", "resp_2", SAID, Progress.ENDED)
            assert await two.delete("alice", "resp_1")
            server.stop()  # perhaps before the deletion has reached `one`
            server.start()
            await until_gone(one, "resp_1")
            await until(lambda: tombstones(tmp_path / "a") == tombstones(tmp_path / "b") == ["resp_1"])
            assert await one.get("alice", "resp_2") == SAID


@pytest.mark.slow
async def test_a_gateway_that_only_received_a_deletion_publishes_it_again(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with archive(tmp_path / "late", server) as late:
            await late.put("alice", "resp_1", SAID, Progress.ENDED)
        async with archive(tmp_path / "a", server):
            async with archive(tmp_path / "b", server) as two:
                assert await two.delete("alice", "resp_1")
                await until(lambda: tombstones(tmp_path / "a") == ["resp_1"])
            server.stop()
            server.start()
            async with archive(tmp_path / "late", server):
                await until(lambda: contents(tmp_path / "late") == 0)


@pytest.mark.slow
async def test_a_gateway_deletes_its_copy_of_a_record_without_reading_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with archive(tmp_path / "a", server) as one, archive(tmp_path / "b", server) as two:
            await one.put("alice", "resp_1", SAID, Progress.ENDED)
            assert await two.delete("alice", "resp_1")
            await until(lambda: contents(tmp_path / "a") == 0)


@contextmanager
def two_gateways(folder: Path, model: Path, redis: RedisServer) -> Iterator[tuple[Gateway, Gateway]]:
    """Two gateways that share a Redis, an id key and, without users, the one tenant."""
    (folder / "cache.key").write_text(KEYS.text)
    shared = {"model": model, "context": 512, "cache": redis.url, "cache_key": folder / "cache.key", "cores": 1}
    with Gateway(folder / "a", **shared) as one, Gateway(folder / "b", **shared) as two:
        yield one, two


def ask(gateway: Gateway) -> str:
    """The id of a response."""
    return str(gateway.post("/v1/responses", {"input": LONG, **ANSWER}).raise_for_status().json()["id"])


@pytest.mark.slow
async def test_what_another_gateway_deleted_is_not_served_from_memory_either(tmp_path: Path, tiny_model: Path) -> None:
    with RedisServer(tmp_path) as redis, two_gateways(tmp_path, tiny_model, redis) as (one, two):
        response = ask(one)
        path = f"/v1/responses/{response}"
        assert one.get(path).status_code == 200
        assert two.delete(path).json()["deleted"] is True
        assert {one.get(path + end).status_code for end in ("", "?stream=true", "/input_items")} == {404}
        redis.stop()
        redis.start()
        assert {one.get(path + end).status_code for end in ("", "?stream=true", "/input_items")} == {404}
        async with one.connect() as conversation:
            await conversation.send({"type": "response.resume", "response_id": response})
            assert (await conversation.events())[-1].type == "error"
            [refused] = await conversation.ask("?", previous_response_id=response)
            assert refused.error.code == "previous_response_not_found"


def blocks_in(redis: RedisServer) -> int:
    """How many KV blocks lie in a Redis."""
    store = RedisStore(redis.unix, ttl=1)
    try:
        return len(list(store._client.scan_iter(match=b"samovar:block:*")))
    finally:
        store.close()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed meanwhile"])
async def test_blocks_that_a_silent_redis_did_not_delete_are_deleted_later(
    tmp_path: Path, tiny_model: Path, *, killed: bool
) -> None:
    with RedisServer(tmp_path) as redis, Gateway(tmp_path / "a", model=tiny_model, context=512, cache=redis.url) as one:
        response = ask(one)
        await until(lambda: blocks_in(redis) > 1)
        redis.freeze()
        assert one.delete(f"/v1/responses/{response}").json()["deleted"] is True
        if killed:
            one.stop(signal.SIGKILL)
        redis.thaw()
        if killed:
            one.start()
        await until(lambda: blocks_in(redis) == 0)


def rows_in(file: Path) -> int:
    """How many KV blocks lie in a SQLite store."""
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute("SELECT count(*) FROM states").fetchone()[0])


@pytest.mark.slow
async def test_blocks_in_a_locked_file_are_deleted_when_it_is_unlocked(shared_server: Gateway) -> None:
    response, file = ask(shared_server), shared_server.state / "blocks.db"
    await until(lambda: rows_in(file) > 1)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert shared_server.delete(f"/v1/responses/{response}").json()["deleted"] is True
        assert rows_in(file) > 1
        connection.execute("ROLLBACK")
    await until(lambda: rows_in(file) == 0)


@pytest.mark.slow
async def test_a_deletion_while_the_engine_still_stores_the_answer_leaves_no_block(shared_server: Gateway) -> None:
    file = shared_server.state / "blocks.db"
    ask(shared_server)
    for n in range(6):
        await until(lambda: rows_in(file) > 0)
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # engine and gateway wait side by side
            body = {"input": f"{n} {LONG * 2}", **ANSWER}
            response = shared_server.post("/v1/responses", body).raise_for_status().json()["id"]
            deleting = asyncio.create_task(asyncio.to_thread(shared_server.delete, f"/v1/responses/{response}"))
            await asyncio.sleep(0.2)
            connection.execute("ROLLBACK")
        assert (await deleting).json()["deleted"] is True
    shared_server.delete(f"/v1/responses/{ask(shared_server)}")
    await until(lambda: rows_in(file) == 0)


class Cells:
    """A context whose cells say which tokens they are of."""

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """As a context does."""
        return f"{sequence} {start} {end}".encode()

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Nothing is loaded here."""
        raise NotImplementedError

    def cut(self, sequence: int, length: int) -> None:
        """Nothing is cut here."""


@pytest.mark.parametrize("written", [0, 1, 3], ids="{} of 3 blocks written out".format)
def test_what_an_engine_has_queued_is_not_stored_after_a_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """One turn is on its way to a slow store; behind it wait the deleted one and another."""
    store = SqliteStore(tmp_path / "blocks.db", ttl=1e6, max_bytes=1 << 30)
    cache = PrefixCache(CircuitBreaker(store), KEYS, {})
    ready, original = threading.Event(), PrefixCache.store

    def slowly(self: PrefixCache, chain: Chain, states: list[Stored]) -> bool:
        return ready.wait(20) and original(self, chain, states)

    monkeypatch.setattr(PrefixCache, "store", slowly)
    connector = KVConnector(Cells(), cache, wake=lambda: None)
    first, deleted, other = (connector.chain(range(300), scope, 0) for scope in "abc")
    finished: list[bool] = []
    connector.store(CachedSequence(0), first, first.blocks)
    connector.drain()
    connector.store(CachedSequence(1), deleted, deleted.blocks, done=finished.append)
    for _ in range(written):
        connector.step()
    connector.store(CachedSequence(2), other, other.blocks)
    confirmed = threading.Event()
    connector.discard(deleted, 0, confirmed.set)
    connector.run_callbacks()
    assert not confirmed.is_set()
    ready.set()
    connector.drain()
    connector._storing.shutdown()
    connector.run_callbacks()
    assert confirmed.is_set()
    assert finished == [False]

    def stored(blocks: list[Block]) -> list[bool]:
        return store.has_many([block.id for block in blocks])

    assert [set(stored(chain.blocks)) for chain in (first, deleted, other)] == [{True}, {False}, {True}]
    connector.close()
