"""The gateway's side of the cache: gateways that share it need the same key, and no start waits for a store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cache import Cache, KeyMismatchError, KeyRing, PrefixCache, Stored, StoreFullError
from tests.support.redis_server import RedisServer, babbler

KEYS = KeyRing.new()
WHAT = {"model": "m"}


def open_cache(url: str, keys: KeyRing = KEYS) -> Cache:
    """As a gateway does at its start."""
    return Cache(url, keys, ttl=1000, max_bytes=1 << 26)


async def until(true: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


def finds(cache: PrefixCache) -> bool:
    """Return whether the cache finds the blocks that `keeps` has stored."""
    return bool(cache.fetch(cache.chain(range(200), "alice")))


def keeps(cache: PrefixCache) -> None:
    """Keep a sequence of 200 tokens."""
    chain = cache.chain(range(200), "alice")
    cache.store(chain, [Stored(block, b"state") for block in chain.blocks])


@pytest.mark.parametrize("kind", ["sqlite", "redis", "memory"])
def test_an_engine_finds_what_the_gateway_and_other_engines_share(tmp_path: Path, kind: str) -> None:
    with RedisServer(tmp_path) as server:
        url = {"sqlite": f"sqlite://{tmp_path}/b.db", "redis": server.url, "memory": "memory://"}[kind]
        cache = open_cache(url)
        one, two = cache.config.open(WHAT), cache.config.open(WHAT)
        keeps(one)
        assert finds(two)
        assert finds(cache.prefixes(WHAT))
        chain = cache.prefixes(WHAT).chain(range(200), "alice")
        cache.store.delete(cache.prefixes(WHAT).deletable(chain))
        assert not finds(one)
        one.close()
        two.close()
        cache.close()


def test_conversations_are_copied_to_a_redis_and_nowhere_else(tmp_path: Path) -> None:
    for url in ("redis://127.0.0.1:1/0", f"unix://{tmp_path}/none", f"sqlite://{tmp_path}/b.db", "memory://"):
        cache = open_cache(url)
        assert (cache.copies is not None) is url.startswith(("redis", "unix"))
        cache.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_gateway_with_another_key_is_refused_and_one_with_both_takes_over(tmp_path: Path, kind: str) -> None:
    other = KeyRing.new()
    with RedisServer(tmp_path) as server:
        url = server.url if kind == "redis" else f"sqlite://{tmp_path}/b.db"
        open_cache(url).close()
        open_cache(url).close()
        with pytest.raises(KeyMismatchError, match=KEYS.fingerprints[0]):
            open_cache(url, other)
        open_cache(url, KeyRing.parse(other.text + KEYS.text)).close()
        open_cache(url, other).close()
        with pytest.raises(KeyMismatchError, match=other.fingerprints[0]):
            open_cache(url)


def test_a_gateway_starts_while_the_store_is_unavailable(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    cache = open_cache(server.url)
    engine = cache.config.open(WHAT)
    assert not finds(engine)
    cache.close()
    engine.close()


@pytest.mark.parametrize("wrong", ["a plain port", "no file"])
def test_a_start_logs_the_cause_even_where_the_deadline_of_a_call_hides_it(tmp_path: Path, wrong: str) -> None:
    with RedisServer(tmp_path) as server, capture_logs() as logs:
        url = server.url.replace("redis://", "rediss://:s3cret@")
        open_cache(url if wrong == "a plain port" else f"{url}?ssl_ca_certs={tmp_path}/ca.pem").close()
    [line] = [line for line in logs if line["log_level"] == "warning"]
    cause = "does not speak TLS" if wrong == "a plain port" else f"ssl_ca_certs: there is no file {tmp_path}/ca.pem"
    assert cause in line["reason"]
    assert (line["store"], "s3cret" in str(line)) == (f"rediss://127.0.0.1:{server.port}/0", False)


async def test_a_redis_that_fills_up_and_is_emptied_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.cache.CHECK_SECONDS", 0.05)
    with RedisServer(tmp_path) as server, capture_logs() as logs:
        cache = open_cache(server.url)
        assert cache.copies is not None
        server.command("CONFIG", "SET", "maxmemory", "1")
        keeping = asyncio.create_task(cache.run())
        with pytest.raises(StoreFullError):
            await asyncio.to_thread(cache.copies.store.put_many, [(bytes(32), b"x")])
        await until(lambda: len(logs) == 1)
        server.command("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: cache.copies is not None and cache.copies.store.writable)
        await asyncio.to_thread(cache.copies.store.put_many, [(bytes(32), b"x")])
        await until(lambda: len(logs) == 2)
        keeping.cancel()
        await asyncio.to_thread(cache.close)
    assert logs[0]["event"] == "the cache takes no writes: what is computed now is not stored"
    assert ("maxmemory" in logs[0]["reason"], logs[1]["event"]) == (True, "the cache is back")


def test_another_service_at_its_address_hinders_no_start() -> None:
    with babbler(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        open_cache(f"redis://127.0.0.1:{port}/0").close()


async def test_a_store_that_becomes_available_later_is_checked_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.cache.CHECK_SECONDS", 0.05)
    server = RedisServer(tmp_path)
    cache = open_cache(server.url)
    keeping = asyncio.create_task(cache.run())
    with server:
        await until(lambda: cache._checked)
        assert await asyncio.to_thread(cache.store.read_mark) == KEYS.fingerprints[0]
        await until(lambda: cache.store.up)
    await until(lambda: not cache.store.up)  # noticed although no request uses the store
    keeping.cancel()
    await asyncio.to_thread(cache.close)


def test_a_store_that_can_never_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="must be sqlite"):
        open_cache("nonsense")
