"""Conversations at rest: sealed, acknowledged when on disk, copied to where other gateways look, deleted everywhere."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from cache import Archive, Copies, KeyMismatchError, KeyRing, Progress, StoreError
from cache.redis import RedisStore
from tests import ROOT
from tests.support.clock import Clock
from tests.support.redis_server import RedisServer

KEYS = KeyRing.new()
ENDED = Progress.ENDED
SAID = "我想喝茶 and nobody else may know".encode()


@asynccontextmanager
async def gateway(folder: Path, server: RedisServer | None = None, keys: KeyRing = KEYS) -> AsyncIterator[Archive]:
    """The archive of one gateway, with its outbox at work."""
    copies = Copies(server.unix, keys, ttl=1e6) if server else None
    archive = Archive(folder / "conversations.db", keys, ttl=1e6, copies=copies)
    keeping = asyncio.create_task(archive.run())
    try:
        yield archive
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        archive.close()
        if copies is not None:
            await asyncio.to_thread(copies.close)


async def until(true: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    for _ in range(1000):
        if await asyncio.to_thread(true):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


def copied(folder: Path) -> bool:
    """Whether the outbox is empty."""
    with closing(sqlite3.connect(folder / "conversations.db")) as connection:
        return not connection.execute("SELECT id FROM records WHERE copied = 0").fetchall()


async def test_a_record_outlives_its_gateway_and_is_its_tenants_alone(tmp_path: Path) -> None:
    async with gateway(tmp_path) as archive:
        assert await archive.put("alice", "resp_1", SAID, ENDED)
    async with gateway(tmp_path) as archive:
        assert await archive.get("alice", "resp_1") == SAID
        assert await archive.get("bob", "resp_1") is None
        assert await archive.get("alice", "resp_2") is None


async def test_what_runs_can_be_written_again_and_what_has_ended_not(tmp_path: Path) -> None:
    async with gateway(tmp_path) as archive:
        for body, progress in ((b"1", Progress.RUNNING), (b"2", Progress.INTERRUPTED), (b"3", ENDED)):
            assert await archive.put("alice", "resp_1", body, progress)
        assert not await archive.put("alice", "resp_1", b"4", ENDED)
        assert not await archive.put("alice", "resp_1", b"4", Progress.RUNNING)
        assert await archive.get("alice", "resp_1") == b"3"


async def test_what_was_under_way_is_known_after_a_crash(tmp_path: Path) -> None:
    async with gateway(tmp_path) as archive:
        await archive.put("alice", "resp_1", b"one", Progress.RUNNING)
        await archive.put("bob", "resp_2", b"two", ENDED)
    async with gateway(tmp_path) as archive:
        assert await archive.running() == [("alice", "resp_1", b"one")]


def held(folder: Path, server: RedisServer) -> tuple[list[bytes], bytes]:
    """Redis's keys, and all bytes that lie there and in the files."""
    store = RedisStore(server.unix, ttl=1)
    keys = [bytes(key) for key in store._client.scan_iter()]
    values = [bytes(value) for value in store._client.mget(keys) if value is not None]  # type: ignore[arg-type]
    store.close()
    files = [path.read_bytes() for path in folder.glob("conversations.db*")]
    return keys, b"".join([*keys, *values, *files])


async def test_neither_file_nor_redis_reveals_text_and_redis_reveals_no_tenant(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path, server) as archive:
            await archive.put("alice", "resp_1", SAID, ENDED)
            [key], everything = held(tmp_path, server)
    assert [secret for secret in (SAID, SAID[:10], b"nobody else") if secret in everything] == []
    assert [name for name in (b"resp_1", b"alice") if name in key] == []


async def test_a_record_in_anothers_place_does_not_open(tmp_path: Path) -> None:
    async with gateway(tmp_path) as archive:
        await archive.put("alice", "resp_1", SAID, ENDED)
        await archive.put("bob", "resp_2", b"hello", ENDED)
        await archive._database.run("UPDATE records SET sealed = (SELECT sealed FROM records WHERE tenant = 'alice')")
        assert await archive.get("alice", "resp_1") == SAID
        assert await archive.get("bob", "resp_2") is None


async def test_a_second_gateway_reads_what_the_first_has_acknowledged(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path / "a", server) as one, gateway(tmp_path / "b", server) as two:
            await one.put("alice", "resp_1", SAID, ENDED)
            assert await two.get("alice", "resp_1") == SAID
            assert await two.get("bob", "resp_1") is None
            await one.put("alice", "resp_2", SAID, Progress.RUNNING)
            assert await two.get("alice", "resp_2") is None


async def test_a_record_unreadable_in_a_damaged_file_is_read_from_the_copies(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path / "a", server) as archive:
            for n in range(3):
                assert await archive.put("alice", f"resp_{n}", SAID, ENDED)
            await archive._database.run("UPDATE records SET sealed = x'00' WHERE id = 'resp_1'")
            assert await archive.get("alice", "resp_1") == SAID
            await archive._database.run("DROP TABLE records")
            assert await archive.get("alice", "resp_2") == SAID
            with pytest.raises(StoreError):
                await archive.get("alice", "resp_3")
        async with gateway(tmp_path / "b", server) as other:
            assert await other.get("alice", "resp_0") == SAID


@pytest.mark.slow
async def test_an_outage_delays_copies_and_fails_no_turn(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path / "a", server) as one, gateway(tmp_path / "b", server) as two:
            server.stop()
            for n in range(40):
                assert await one.put("alice", f"resp_{n}", SAID, ENDED)
            assert await one.get("alice", "resp_1") == SAID
            with pytest.raises(StoreError):
                await two.get("alice", "resp_1")
            server.start()
            await until(lambda: copied(tmp_path / "a"))
            assert two.replication is not None
            copies = two.replication.copies
            await until(lambda: copies.reachable)
            assert [await two.get("alice", f"resp_{n}") for n in range(40)] == [SAID] * 40


async def test_an_outbox_waits_through_a_restart(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path) as archive:
            await archive.put("alice", "resp_1", SAID, ENDED)
        async with gateway(tmp_path, server):
            await until(lambda: copied(tmp_path))
        async with gateway(tmp_path / "b", server) as other:
            assert await other.get("alice", "resp_1") == SAID


async def test_a_full_redis_fails_no_turn(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        async with gateway(tmp_path, server) as archive:
            assert await archive.put("alice", "resp_1", SAID, ENDED)
            assert await archive.get("alice", "resp_1") == SAID
            assert not copied(tmp_path)


async def test_a_deleted_record_is_deleted_on_every_gateway(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path / "a", server) as one, gateway(tmp_path / "b", server) as two:
            await one.put("alice", "resp_1", SAID, ENDED)
            await one.put("alice", "resp_2", SAID, ENDED)
            assert not await two.delete("bob", "resp_1")
            assert await two.delete("alice", "resp_1")
            assert not await two.delete("alice", "resp_1")
            for archive in (one, two):
                assert await archive.get("alice", "resp_1") is None
                assert await archive.get("alice", "resp_2") == SAID
        with closing(sqlite3.connect(tmp_path / "a" / "conversations.db")) as connection:
            assert connection.execute("SELECT id FROM records WHERE sealed != x''").fetchall() == [("resp_2",)]


async def test_a_forged_tombstone_in_redis_deletes_nothing(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path / "a", server) as one, gateway(tmp_path / "b", server) as two:
            await one.put("alice", "resp_1", SAID, ENDED)
            assert one.replication is not None
            shared = one.replication.copies
            store, [name] = shared.store, shared.ids("gone", "alice", "resp_1")
            copies = await asyncio.to_thread(store.get_many, shared.ids("copy", "alice", "resp_1"))
            for forged in (b"\0", *copies):
                assert forged is not None
                await asyncio.to_thread(store.put_many, [(name, forged)])
                for archive in (one, two):
                    assert await archive.get("alice", "resp_1") == SAID


@pytest.mark.slow
async def test_a_record_deleted_during_an_outage_stays_deleted(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path / "a", server) as one, gateway(tmp_path / "b", server) as two:
            await one.put("alice", "resp_1", SAID, ENDED)
            assert await two.get("alice", "resp_1") == SAID
            server.freeze()
            assert await one.delete("alice", "resp_1")
            assert await one.get("alice", "resp_1") is None
            server.thaw()
            await until(lambda: copied(tmp_path / "a"))
            assert await two.get("alice", "resp_1") is None


async def test_a_deletion_stays_when_redis_loses_it_and_has_a_newer_one_before_anybody_looks(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path / "a", server) as away:
            await away.put("alice", "resp_1", SAID, ENDED)
        async with gateway(tmp_path / "b", server) as two:
            await two.put("alice", "resp_2", SAID, ENDED)
            assert await two.delete("alice", "resp_1")
            server.command("FLUSHALL")
            assert await two.delete("alice", "resp_2")
            await until(lambda: server.command("XLEN", "samovar:deleted") == 3)
            await until(lambda: copied(tmp_path / "b"))
        async with gateway(tmp_path / "a", server) as back:
            assert await back.get("alice", "resp_1") is None


async def test_without_copies_a_deleted_record_leaves_no_trace(tmp_path: Path) -> None:
    async with gateway(tmp_path) as archive:
        await archive.put("alice", "resp_1", SAID, ENDED)
        assert await archive.delete("alice", "resp_1")
        assert await archive.get("alice", "resp_1") is None
    with closing(sqlite3.connect(tmp_path / "conversations.db")) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (0,)


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("copies", [False, True])
async def test_what_is_deleted_is_overwritten_in_the_file(
    tmp_path: Path, size: int, copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even the sealed bytes are overwritten, so that not even the key recovers a deleted record. Other records stay."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: _forgetful(connect(*args, **options)))
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path, server if copies else None) as archive:
            for n in range(9):
                await archive.put("alice", f"resp_{n}", bytes(size), ENDED)
            with closing(connect(tmp_path / "conversations.db")) as connection:
                sealed = [row[0] for row in connection.execute("SELECT sealed FROM records ORDER BY id")]
            assert await archive.delete("alice", "resp_4")
        file = (tmp_path / "conversations.db").read_bytes()  # closing the last connection has removed the log
    pieces = [[record[at : at + 32] in file for at in range(0, size, 1000)] for record in sealed]
    assert [any(found) for found in pieces] == [n != 4 for n in range(9)]


def _forgetful(connection: sqlite3.Connection) -> sqlite3.Connection:
    """As SQLite is built elsewhere: Debian's overwrites whether it is asked to or not."""
    connection.execute("PRAGMA secure_delete = OFF")
    return connection


async def test_after_a_rotation_conversations_still_open_here_and_from_copies(tmp_path: Path) -> None:
    rotated = KeyRing.parse(f"{KeyRing.new().text} {KEYS.text}")
    with RedisServer(tmp_path) as server:
        async with gateway(tmp_path / "a", server) as archive:
            await archive.put("alice", "resp_1", SAID, ENDED)
        async with gateway(tmp_path / "a", server, rotated) as one, gateway(tmp_path / "b", server, rotated) as two:
            assert await one.get("alice", "resp_1") == SAID
            assert await two.get("alice", "resp_1") == SAID
            assert await two.delete("alice", "resp_1")
            assert await one.get("alice", "resp_1") is None
    with pytest.raises(KeyMismatchError, match=r"conversations\.db was sealed under the key"):
        Archive(tmp_path / "a" / "conversations.db", KEYS, ttl=1e6)


def test_the_rotation_of_the_docs_puts_a_new_key_above_the_old_one(tmp_path: Path) -> None:
    docs = ROOT / "docs" / "cache.md"
    found = re.search(r"To rotate it.*?\n```sh\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    old = KeyRing.load(tmp_path / "cache.key")
    subprocess.run(["sh", "-ec", found[1]], cwd=tmp_path, check=True)
    new = KeyRing.load(tmp_path / "cache.key")
    assert (len(new.fingerprints), new.fingerprints[1:]) == (2, old.fingerprints)
    assert (tmp_path / "cache.key").stat().st_mode & 0o777 == 0o600


async def test_a_file_of_another_key_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    async with gateway(tmp_path) as archive:
        await archive.put("alice", "resp_1", SAID, ENDED)
    with pytest.raises(KeyMismatchError, match=KEYS.fingerprints[0]):
        Archive(tmp_path / "conversations.db", KeyRing.new(), ttl=1e6)
    async with gateway(tmp_path) as archive:
        assert await archive.get("alice", "resp_1") == SAID


async def test_unread_records_expire_and_read_records_are_renewed(tmp_path: Path) -> None:
    clock = Clock(1_000_000.0)
    archive = Archive(tmp_path / "c.db", KEYS, ttl=7 * 86_400, clock=clock)
    for name in ("read", "unread"):
        await archive.put("alice", name, SAID * 10_000, ENDED)
    for _ in range(10):
        clock.now += 86_400
        assert await archive.get("alice", "read") is not None
    assert await archive.get("alice", "unread") is None
    await archive.sweep()
    assert await archive._database.run("SELECT id FROM records") == [("read",)]
    archive.close()


async def test_deleting_many_records_shrinks_the_file(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "c.db", KEYS, ttl=100)
    for n in range(30):
        await archive.put("alice", str(n), bytes(100_000), ENDED)
    for n in range(30):
        await archive.delete("alice", str(n))
    await archive.sweep()
    archive.close()
    assert (tmp_path / "c.db").stat().st_size < 200_000


async def test_whatever_of_the_file_is_damaged_the_complaint_names_it(tmp_path: Path) -> None:
    whole = tmp_path / "conversations.db"
    archive = Archive(whole, KEYS, ttl=1e6)
    for number in range(9):
        await archive.put("a", f"resp_{number}", bytes(3000), ENDED)
    archive.close()
    content, complaints = whole.read_bytes(), []
    for start in range(0, len(content), 4096):
        damaged = tmp_path / str(start) / "conversations.db"
        damaged.parent.mkdir()
        damaged.write_bytes(content[:start] + b"\xff" * 4096 + content[start + 4096 :])
        try:
            archive = Archive(damaged, KEYS, ttl=1e6)
            try:
                await archive.get("a", "resp_0")
                await archive.sweep()
            finally:
                archive.close()
        except StoreError as error:
            complaints.append(str(error))
    assert len(complaints) > 2
    assert [complaint for complaint in complaints if "conversations.db" not in complaint] == []
