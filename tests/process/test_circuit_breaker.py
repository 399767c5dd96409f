"""A store in trouble costs a request a bounded wait once, is left alone, and is used again when it is well."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cache import StoreError, StoreFullError, StoreReadOnlyError
from cache.circuit_breaker import CircuitBreaker, Operation
from cache.redis import RedisStore
from cache.sqlite import SqliteStore
from tests.support.redis_server import RedisServer, babbler, wire

IDS = [bytes([n]) * 32 for n in range(250)]
POLICIES = ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be broken."""
    with RedisServer(tmp_path) as started:
        yield started


@pytest.fixture
def seen() -> list[Operation]:
    """The operations reported to the store's metrics."""
    return []


@pytest.fixture
def guard(seen: list[Operation]) -> Iterator[Callable[[str], CircuitBreaker]]:
    """Makes guarded Redis stores, and closes them."""
    with ExitStack() as stack:

        def make(url: str) -> CircuitBreaker:
            guarded = CircuitBreaker(RedisStore(url, ttl=100), observe=seen.append)
            stack.callback(guarded.close)
            return guarded

        yield make


def wait_until(true: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def fails(store: CircuitBreaker) -> str:
    """Why a fetch fails, when it does."""
    with pytest.raises(StoreError) as caught:
        store.get_many(IDS[:8])
    return str(caught.value)


def test_calls_are_reported_with_their_outcome_and_bytes(
    server: RedisServer, seen: list[Operation], guard: object
) -> None:
    store = guard(server.url)  # type: ignore[operator]
    store.put_many([(IDS[0], b"12345"), (IDS[1], b"123")])
    for wanted in (IDS[:2], IDS[:3], IDS[2:4]):
        store.get_many(wanted)
    store.has_many(IDS)
    observed = [(one.backend, one.operation, one.outcome, one.bytes) for one in seen]
    assert observed == [
        ("redis", "put", "ok", 8),
        ("redis", "get", "hit", 8),
        ("redis", "get", "partial", 8),
        ("redis", "get", "miss", 0),
        ("redis", "has", "ok", 0),
    ]


def test_a_stopped_redis_is_skipped_and_used_again_once_it_is_back(
    server: RedisServer, seen: list[Operation], guard: Callable[[str], CircuitBreaker]
) -> None:
    store = guard(server.url)
    store.put_many([(IDS[0], b"x")])
    server.stop()
    assert "Redis can't be reached" in fails(store)
    assert (store.up, store.writable) == (False, False)
    for _ in range(100):
        fails(store)
    with pytest.raises(StoreError):
        store.put_many([(IDS[0], b"x")])
    assert [one.outcome for one in seen] == ["ok", "error", *["skipped"] * 101]
    server.start()
    wait_until(lambda: store.up)
    store.put_many([(IDS[0], b"y")])
    assert (store.get_many(IDS[:1]), store.reason) == ([b"y"], "")


def test_a_redis_that_answers_nothing_costs_one_wait(
    server: RedisServer, seen: list[Operation], guard: Callable[[str], CircuitBreaker]
) -> None:
    store = guard(server.unix)
    store.put_many([(IDS[0], b"x")])
    server.freeze()
    assert "no answer within" in fails(store)
    fails(store)
    assert [one.outcome for one in seen] == ["ok", "timeout", "skipped"]
    server.thaw()
    wait_until(lambda: store.up)
    assert store.get_many(IDS[:1]) == [b"x"]


def test_a_redis_with_half_a_second_of_latency_counts_as_unavailable(
    server: RedisServer, seen: list[Operation], guard: Callable[[str], CircuitBreaker]
) -> None:
    with wire(server.socket, 0.5) as port:
        store = guard(f"redis://127.0.0.1:{port}/0")
        for _ in range(5):
            fails(store)
        assert {one.outcome for one in seen[1:]} == {"skipped"}
        assert not store.up


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00" * 20,
        b":1\r\n" * 20,
        b"+OK\r\n" * 20,
        b"$5\r\nhello\r\n" * 20,
        b"*2\r\n$1\r\na\r\n:3\r\n" * 20,
        b"*-1\r\n" * 20,
        b"*99999999999\r\n",
        b"$-1\r\n" * 20,
        b"-ERR what is this?\r\n" * 20,
        b"\r\n\r\n\r\n",
        b"\xff" * 1000,
    ],
    ids=lambda answer: repr(answer[:12]),
)
def test_whatever_answers_in_its_place_is_an_error_and_no_crash(
    answer: bytes, guard: Callable[[str], CircuitBreaker], seen: list[Operation]
) -> None:
    with babbler(answer) as port:
        store = guard(f"redis://127.0.0.1:{port}/0")
        fails(store)
        assert seen[-1].outcome in ("error", "timeout")


def test_an_answer_that_drips_in_is_not_waited_for(
    guard: Callable[[str], CircuitBreaker], seen: list[Operation]
) -> None:
    """Every byte resets a socket's own time-out: this one would go on for minutes."""
    with babbler(b"+OK" * 1000, drip=0.1) as port:
        assert "no answer within" in fails(guard(f"redis://127.0.0.1:{port}/0"))
    assert seen[-1].outcome == "timeout"


def test_a_rejected_password_is_reported_but_not_quoted(
    server: RedisServer, guard: Callable[[str], CircuitBreaker]
) -> None:
    said = fails(guard(f"redis://:s3cret@127.0.0.1:{server.port}/0"))
    assert "Redis" in said
    assert "s3cret" not in said
    protected = server
    protected.stop()
    protected._options = ("--requirepass", "s3cret")
    protected.start()
    assert "Redis refuses the user or the password of the address: Authentication required" in fails(guard(server.url))
    store = guard(f"redis://:s3cret@127.0.0.1:{server.port}/0")
    store.put_many([(IDS[0], b"x")])
    assert store.get_many(IDS[:1]) == [b"x"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_redis_evicts_by_its_own_policy(
    tmp_path: Path, guard: Callable[[str], CircuitBreaker], policy: str
) -> None:
    options = ["--maxmemory", "24mb", "--maxmemory-policy", policy]
    with RedisServer(tmp_path, *options) as server:
        store = guard(server.unix)
        for n in range(60):
            store.put_many([(IDS[n], os.urandom(1 << 20))], [IDS[n]])
        found = store.get_many(IDS[:60])
        assert 0 < sum(value is not None for value in found) < 30
        assert store.up


def test_under_volatile_ttl_a_chain_is_given_up_from_its_leaf(
    tmp_path: Path, guard: Callable[[str], CircuitBreaker]
) -> None:
    options = ["--maxmemory", "24mb", "--maxmemory-policy", "volatile-ttl", "--maxmemory-samples", "64"]
    with RedisServer(tmp_path, *options) as server:
        store = guard(server.unix)
        chain = IDS[:12]
        store.put_many([(id_, os.urandom(1 << 20)) for id_ in chain], list(reversed(chain)))
        time.sleep(0.05)  # times to live differ by a millisecond each; later values are newer than all of these
        for n in range(100, 112):
            store.put_many([(IDS[n], os.urandom(1 << 20))])
        has = store.has_many(chain)
        assert has == sorted(has, reverse=True)
        assert 0 < sum(has) < 12


def test_a_full_redis_without_eviction_is_readable_and_writable_again_when_it_has_space(
    tmp_path: Path, guard: Callable[[str], CircuitBreaker], seen: list[Operation]
) -> None:
    with RedisServer(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        store = guard(server.unix)
        with pytest.raises(StoreFullError, match="maxmemory"):
            for n in range(20):
                store.put_many([(IDS[n], os.urandom(1 << 20))])
        assert (store.up, store.writable, store.reachable) == (False, False, True)
        assert store.get_many(IDS[:1])[0] is not None
        with pytest.raises(StoreError):
            store.put_many([(IDS[0], b"x")])
        assert [one.outcome for one in seen][-3:] == ["full", "hit", "skipped"]
        store.delete(IDS)
        wait_until(lambda: store.writable)
        store.put_many([(IDS[0], b"x")])
        assert store.up
        assert store.reason == ""


def test_a_read_only_replica_is_read_but_not_written(tmp_path: Path, guard: Callable[[str], CircuitBreaker]) -> None:
    with RedisServer(tmp_path, "--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "yes") as server:
        store = guard(server.unix)
        with pytest.raises(StoreReadOnlyError, match="it is a replica") as caught:
            store.put_many([(IDS[0], b"value")])
        assert "value" not in str(caught.value)
        assert store.get_many(IDS[:2]) == [None, None]
        assert store.reachable


def test_every_value_has_a_time_to_live_and_a_parent_a_longer_one(server: RedisServer) -> None:
    store = RedisStore(server.unix, ttl=100)
    store.put_many([(id_, b"x") for id_ in IDS[:5]])
    put = [store._client.pexpiretime(key) for key in map(bytes.decode, store._keys(IDS[:5]))]
    store.put_many([], list(reversed(IDS[:5])))
    touched = [store._client.pexpiretime(key) for key in map(bytes.decode, store._keys(IDS[:5]))]
    assert all(0 < earlier <= later for earlier, later in zip(put, touched, strict=True))
    for times in (put, touched):
        assert times == sorted(times, reverse=True)
        assert len(set(times)) == 5
    store.close()


def test_a_hung_disk_costs_one_wait(tmp_path: Path, seen: list[Operation]) -> None:
    """A statement that does not end stands for it; the guard ends it, and the file is used again."""
    inner = SqliteStore(tmp_path / "blocks.db", ttl=100, max_bytes=1 << 26)
    store = CircuitBreaker(inner, observe=seen.append)
    store.put_many([(IDS[0], b"x")])
    endless = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    entered = threading.Event()

    def hang() -> None:
        def work(connection: object) -> None:
            entered.set()
            connection.execute(endless).fetchall()  # type: ignore[attr-defined]

        with pytest.raises(StoreError, match="interrupted"):
            inner._reader.run(work)

    hanging = threading.Thread(target=hang)
    hanging.start()
    entered.wait(10)
    assert "no answer within" in fails(store)
    hanging.join(timeout=10)
    assert not hanging.is_alive()
    wait_until(lambda: store.up)
    assert store.get_many(IDS[:1]) == [b"x"]
    store.close()


def test_a_closed_store_refuses_and_does_not_hang(server: RedisServer, guard: Callable[[str], CircuitBreaker]) -> None:
    store = guard(server.unix)
    store.ping()
    server.freeze()
    waiting = threading.Thread(target=lambda: fails(store))
    waiting.start()
    store.close()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    with pytest.raises(StoreError):
        store.ping()
    server.thaw()
