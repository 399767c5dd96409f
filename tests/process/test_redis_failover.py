"""Failover of Redis, behind one address or through Sentinels: nothing is lost, and the cache is used again."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cache import (
    Archive,
    Cache,
    CircuitBreaker,
    Copies,
    KeyRing,
    Ledger,
    PrefixCache,
    Progress,
    RedisStore,
    Stored,
    StoreReadOnlyError,
    UnsupportedStoreError,
)
from tests.support.redis_server import RedisServer, Sentinel, Switch, listening, wait_until
from tests.support.running import Gateway

IDS = [bytes([n]) * 32 for n in range(9)]
KEYS = KeyRing.new()
WHAT = {"model": "m"}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A master and its replica."""
    with ExitStack() as stack:
        folders = [tmp_path / "redis-a", tmp_path / "redis-b"]
        for folder in folders:
            folder.mkdir()
        one, two = (stack.enter_context(RedisServer(folder, "--repl-diskless-sync-delay", "0")) for folder in folders)
        two.follow(one)
        yield one, two


@pytest.fixture
def switch(pair: tuple[RedisServer, RedisServer]) -> Iterator[tuple[Switch, str]]:
    """The address of the pair, and its URL."""
    switch = Switch(pair[0].port)
    with listening(switch.serve) as port:
        yield switch, f"redis://127.0.0.1:{port}/0"


def fail_over(pair: tuple[RedisServer, RedisServer], switch: Switch) -> None:
    """The second becomes the master, the first its replica, and new connections lead to the second."""
    one, two = pair
    one.command("WAIT", 1, 10_000)  # until the replica has all
    two.follow(None)
    one.follow(two)
    switch.target = two.port


def test_a_write_follows_a_failover_behind_one_address_at_once(
    pair: tuple[RedisServer, RedisServer], switch: tuple[Switch, str]
) -> None:
    store = CircuitBreaker(RedisStore(switch[1], ttl=100))
    store.put_many([(IDS[0], b"before")])
    fail_over(pair, switch[0])
    store.put_many([(IDS[1], b"after")])
    assert (store.get_many(IDS[:2]), store.up) == ([b"before", b"after"], True)
    assert pair[1].command("EXISTS", b"samovar:block:" + IDS[1].hex().encode()) == 1
    store.close()


def test_a_replica_is_no_full_store_and_is_left_once_the_address_leads_elsewhere(
    pair: tuple[RedisServer, RedisServer], switch: tuple[Switch, str]
) -> None:
    seen: list[str] = []
    store = CircuitBreaker(RedisStore(switch[1], ttl=100), observe=lambda operation: seen.append(operation.outcome))
    store.put_many([(IDS[0], b"before")])
    pair[0].command("WAIT", 1, 10_000)  # until the replica has it
    pair[1].follow(None)
    pair[0].follow(pair[1])  # the address still leads to the first
    with pytest.raises(StoreReadOnlyError, match="it is a replica"):
        store.put_many([(IDS[1], b"after")])
    assert (store.reachable, store.up, store.get_many(IDS[:1])) == (True, False, [b"before"])
    assert "full" not in seen
    switch[0].target = pair[1].port
    wait_until(lambda: store.writable)
    store.put_many([(IDS[1], b"after")])
    assert store.up
    store.close()


async def test_a_store_without_writes_is_found_available_after_a_failover(
    pair: tuple[RedisServer, RedisServer], switch: tuple[Switch, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.cache.CHECK_SECONDS", 0.05)
    cache = Cache(switch[1], KEYS, ttl=1000, max_bytes=1 << 26)
    pair[1].follow(None)
    pair[0].follow(pair[1])
    with capture_logs() as logs:
        keeping = asyncio.create_task(cache.run())
        with pytest.raises(StoreReadOnlyError):
            await asyncio.to_thread(cache.store.write_mark, "x")
        await until(lambda: len(logs) == 1)
        switch[0].target = pair[1].port
        await until(lambda: cache.store.up)
        await until(lambda: len(logs) == 2)
    keeping.cancel()
    assert [line["event"].partition(":")[0] for line in logs] == ["the cache takes no writes", "the cache is back"]
    assert pair[1].command("GET", "samovar:key") == KEYS.fingerprints[0].encode()
    await asyncio.to_thread(cache.close)


async def test_a_gateway_that_only_reads_users_sees_a_revocation_at_the_new_master(
    pair: tuple[RedisServer, RedisServer], switch: tuple[Switch, str]
) -> None:
    reader = Ledger(switch[1], KEYS)
    assert await reader.revision("users") is None
    one, two = pair
    one.command("WAIT", 1, 10_000)  # until the replica has all
    two.follow(None)
    one.command("REPLICAOF", "127.0.0.1", "1")  # demoted and disconnected: its data is stale
    switch[0].target = two.port
    writer = Ledger(two.url, KEYS)
    await writer.write("users", {"anna": b"revoked"})
    assert await reader.revision("users") == 1
    assert await reader.read("users") == [b"revoked"]
    for ledger in (reader, writer):
        ledger.close()


async def test_conversations_are_copied_to_the_new_master(
    tmp_path: Path, pair: tuple[RedisServer, RedisServer], switch: tuple[Switch, str]
) -> None:
    copies = Copies(switch[1], KEYS, ttl=1e6)
    archive = Archive(tmp_path / "conversations.db", KEYS, ttl=1e6, copies=copies)
    assert await archive.put("alice", "resp_1", b"before", Progress.ENDED)
    fail_over(pair, switch[0])
    assert await archive.put("alice", "resp_2", b"after", Progress.ENDED)
    other = Copies(pair[1].url, KEYS, ttl=1e6)
    there = Archive(tmp_path / "b.db", KEYS, ttl=1e6, copies=other)
    assert [await there.get("alice", name) for name in ("resp_1", "resp_2")] == [b"before", b"after"]
    for one in (archive, there):
        one.close()
    for store in (copies, other):
        await asyncio.to_thread(store.close)


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["its user may use INFO", "its user may not"])
def test_a_redis_cluster_is_refused_by_name_at_start(tmp_path: Path, known: bool) -> None:
    bus = RedisServer(tmp_path).port
    with RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(bus)) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"))
        server.command("ACL", "SETUSER", "tea", "on", ">pot", "~samovar:*", "+@all", *([] if known else ["-info"]))
        with pytest.raises(UnsupportedStoreError) as caught:
            Cache(f"redis://tea:pot@127.0.0.1:{server.port}/0", KEYS, ttl=100, max_bytes=1 << 26)
    assert f"redis://127.0.0.1:{server.port}/0 is a Redis Cluster" in str(caught.value)
    assert "redis+sentinel://" in str(caught.value)


@pytest.fixture
def sentinels(tmp_path: Path, pair: tuple[RedisServer, RedisServer]) -> Iterator[str]:
    """The URL of three Sentinels that watch the pair."""
    with ExitStack() as stack:
        three = [stack.enter_context(Sentinel(tmp_path / f"sentinel-{n}", pair[0], quorum=2)) for n in range(3)]
        wait_until(lambda: all(one.knows(sentinels=2, replicas=1) for one in three))
        yield f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in three)}/samovar/0"


def keeps(cache: PrefixCache) -> bool:
    """Keep a sequence of 200 tokens."""
    chain = cache.chain(range(200), "alice")
    return cache.store(chain, [Stored(block, b"state") for block in chain.blocks])


def finds(cache: PrefixCache) -> bool:
    """Return whether the cache finds the blocks that `keeps` has stored."""
    return bool(cache.fetch(cache.chain(range(200), "alice")))


@pytest.mark.slow
async def test_sentinels_lead_to_the_new_master_when_the_old_one_dies(
    tmp_path: Path, pair: tuple[RedisServer, RedisServer], sentinels: str
) -> None:
    cache = await asyncio.to_thread(Cache, sentinels, KEYS, ttl=1000, max_bytes=1 << 26)
    archive = Archive(tmp_path / "conversations.db", KEYS, ttl=1e6, copies=cache.copies)
    copying = asyncio.create_task(archive.run())
    engine = cache.config.open(WHAT)
    assert keeps(engine)
    assert await archive.put("alice", "resp_0", b"0", Progress.ENDED)
    await asyncio.to_thread(lambda: pair[0].command("WAIT", "1", "5000"))
    pair[0].stop()
    said = 0
    while not await asyncio.to_thread(finds, engine):
        said += 1
        assert await archive.put("alice", f"resp_{said}", b"%d" % said, Progress.ENDED)
        assert said < 600, "the cache was not used again"
        await asyncio.sleep(0.05)
    assert pair[1].command("ROLE")[0] == b"master"
    await until(lambda: pair[1].command("DBSIZE") >= said + 1 + 3)  # two blocks and the fingerprint
    there = Archive(tmp_path / "b.db", KEYS, ttl=1e6, copies=cache.copies)
    assert [await there.get("alice", f"resp_{n}") for n in range(said + 1)] == [b"%d" % n for n in range(said + 1)]
    copying.cancel()
    with suppress(asyncio.CancelledError):
        await copying
    for one in (archive, there):
        one.close()
    engine.close()
    await asyncio.to_thread(cache.close)


@pytest.mark.slow
async def test_gateways_at_sentinels_lose_no_conversation_and_find_its_kv_after_a_failover(
    tmp_path: Path, tiny_model: Path, pair: tuple[RedisServer, RedisServer], sentinels: str
) -> None:
    key = tmp_path / "cache.key"
    key.write_text(KEYS.text)
    settings = {"model": tiny_model, "context": 512, "cache": sentinels, "cache_key": key}
    with Gateway(tmp_path / "a", **settings) as one, Gateway(tmp_path / "b", **settings) as two:
        before = [ask(one, f"{n}: 茶炊是什么?") for n in range(10)]
        await until(lambda: pair[1].command("DBSIZE") > 20)  # copies and blocks of all, at the replica
        pair[0].stop()
        during = [ask(one, f"{n}: 茶是什么?") for n in range(3)]
        found, denied = [], set()
        for response in before:
            while error := (continued := ask(two, "?", previous_response_id=response["id"])).get("error"):
                denied.add(error["code"])
                await asyncio.sleep(0.2)
            found.append(continued["usage"]["input_tokens_details"]["cached_tokens"])
        assert denied <= {"store_unavailable"}
        assert found[-1] == before[-1]["usage"]["total_tokens"] - 1
        for response in during:
            goes_on = functools.partial(ask, two, "?", previous_response_id=response["id"])
            await until(lambda: not goes_on().get("error"))  # noqa: B023 - called in this round only


def ask(gateway: Gateway, text: str, **fields: object) -> dict[str, Any]:
    """The response to one request, or its error."""
    body = {"input": text, "temperature": 0, "max_output_tokens": 5, "logit_bias": {"65": 100}, **fields}
    response: dict[str, Any] = gateway.post("/v1/responses", body).json()
    return response


@pytest.mark.slow
@pytest.mark.parametrize("given", ["", "?sentinel_password=other"])
def test_sentinels_that_refuse_the_password_are_distinguished_from_those_that_know_no_master(
    tmp_path: Path, pair: tuple[RedisServer, RedisServer], given: str
) -> None:
    with Sentinel(tmp_path / "sentinel", pair[0], quorum=1, options=["requirepass s3cret"]) as one:
        store = RedisStore(f"redis+sentinel://127.0.0.1:{one.port}/samovar/0{given}", ttl=100)
        with pytest.raises(Exception, match=r"the Sentinels refuse the password; set the option sentinel_password"):
            store.ping()
        store.close()


@pytest.mark.slow
def test_sentinels_that_know_no_such_master_are_reported(sentinels: str) -> None:
    store = RedisStore(sentinels.replace("/samovar/", "/teapot/"), ttl=100)
    with pytest.raises(Exception, match=r"no Sentinel of redis\+sentinel://.* names a master teapot"):
        store.ping()
    store.close()


async def until(true: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    for _ in range(1000):
        if await asyncio.to_thread(true):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")
