"""The SQLite store: bounded, shared by processes, and recreated if its file is damaged or replaced."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cache import StoreError, StoreFullError
from cache.sqlite import SqliteStore
from cache.sqlite_file import PAGE_BYTES
from tests.support.clock import Clock

IDS = [n.to_bytes(32, "big") for n in range(200)]
MEGABYTE = bytes(1 << 20)


@pytest.fixture
def clock() -> Clock:
    """A clock at rest."""
    return Clock(1_000_000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "blocks.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[SqliteStore]:
    """A store of 16 MiB that keeps for 100 s."""
    opened = SqliteStore(path, ttl=100, max_bytes=16 << 20, clock=clock)
    yield opened
    opened.close()


def present(store: SqliteStore, count: int) -> list[int]:
    """Which of the first ids have a value."""
    return [n for n, has in enumerate(store.has_many(IDS[:count])) if has]


def test_only_the_owner_may_read_the_file(store: SqliteStore, path: Path) -> None:
    store.ping()
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_the_file_stays_within_its_limit_and_evicts_the_least_recently_used(store: SqliteStore, path: Path) -> None:
    for n in range(60):
        store.put_many([(IDS[n], MEGABYTE)])
        store.put_many([], [IDS[0]])
        assert store.size() <= 16 << 20
    kept = present(store, 60)
    assert kept[0] == 0
    assert kept[1:] == list(range(60 - len(kept) + 1, 60))
    assert len(kept) >= 14
    store.close()
    assert path.stat().st_size <= 16 << 20


def test_a_parent_is_never_evicted_before_its_children(store: SqliteStore) -> None:
    """Chains of four grow in turns, as sessions do; whatever is left of one begins at its root."""
    chains = [IDS[4 * n : 4 * n + 4] for n in range(10)]
    for depth in range(4):
        for chain in chains:
            wanted = chain[: depth + 1]
            absent = [id_ for id_, has in zip(wanted, store.has_many(wanted), strict=True) if not has]
            store.put_many([(id_, MEGABYTE) for id_ in absent], list(reversed(wanted)))
            for other in chains:
                has = store.has_many(other)
                assert has == sorted(has, reverse=True)
    assert 0 < store.size() <= 16 << 20


def test_a_chain_put_at_once_is_given_up_from_its_leaf(store: SqliteStore) -> None:
    store.put_many([(id_, MEGABYTE) for id_ in IDS[:10]])
    store.put_many([(id_, MEGABYTE) for id_ in IDS[100:108]])
    left = present(store, 10)
    assert left == list(range(len(left)))
    assert 0 < len(left) < 10


def test_new_blocks_do_not_evict_their_own_parents(store: SqliteStore) -> None:
    store.put_many([(id_, MEGABYTE) for id_ in IDS[:6]])
    store.put_many([(id_, MEGABYTE) for id_ in IDS[100:108]])
    store.put_many([(id_, MEGABYTE) for id_ in IDS[6:12]], list(reversed(IDS[:12])))
    assert present(store, 12) == list(range(12))


def test_unused_values_expire_and_free_their_space(store: SqliteStore, clock: Clock, path: Path) -> None:
    store.put_many([(id_, MEGABYTE) for id_ in IDS[:10]])
    clock.now += 60
    store.put_many([], IDS[:2])
    clock.now += 60
    assert present(store, 10) == [0, 1]
    assert store.get_many(IDS[1:3]) == [MEGABYTE, None]
    store.sweep()
    store.close()
    assert path.stat().st_size < 4 << 20


def test_deleting_frees_space(store: SqliteStore, path: Path) -> None:
    store.put_many([(id_, MEGABYTE) for id_ in IDS[:12]])
    store.delete(IDS[:12])
    store.close()
    assert path.stat().st_size <= 16 * PAGE_BYTES


def test_the_write_ahead_log_is_bounded(store: SqliteStore, path: Path) -> None:
    for n in range(100):
        store.put_many([(IDS[n], MEGABYTE)])
    assert Path(f"{path}-wal").stat().st_size < 24 << 20


def test_small_values_share_pages(store: SqliteStore) -> None:
    store.put_many([(id_, b"x" * 1000) for id_ in IDS])
    assert store.size() < 16 * PAGE_BYTES


def test_what_is_larger_than_the_bound_is_refused_and_nothing_is_lost(store: SqliteStore) -> None:
    store.put_many([(IDS[0], b"x")])
    with pytest.raises(StoreFullError, match="cache_max_bytes"):
        store.put_many([(IDS[1], bytes(17 << 20))])
    assert present(store, 2) == [0]


@pytest.mark.parametrize("moment", ["while open", "between two runs"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("overwritten", lambda path: path.write_bytes(os.urandom(300_000))),
        ("its head overwritten", lambda path: _overwrite(path, 0, b"nonsense" * 20)),
        ("its middle overwritten", lambda path: _overwrite(path, PAGE_BYTES, os.urandom(7 * PAGE_BYTES))),
        ("cut in half", lambda path: os.truncate(path, path.stat().st_size // 2)),
        ("cut to a byte", lambda path: os.truncate(path, 1)),
        ("emptied", lambda path: os.truncate(path, 0)),
        ("deleted", lambda path: path.unlink()),
        ("replaced", lambda path: (path.rename(f"{path}.old"), path.write_bytes(b"x" * 5000))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_costs_what_it_held_and_no_more(
    path: Path, name: str, damage: Callable[[Path], object], moment: str
) -> None:
    store = SqliteStore(path, ttl=100, max_bytes=16 << 20)
    values = [os.urandom(100_000) for _ in range(10)]
    store.put_many(list(zip(IDS, values, strict=False)))
    store.close()
    store.ping()  # the log is folded in, the file open again
    if moment == "between two runs":
        store.close()
    damage(path)
    for n in range(10, 16):  # a call or two may fail, and values outside the damaged part may still be found
        try:
            store.put_many([(IDS[n], b"new")])
            found = store.get_many(IDS[:10])
            assert len(found) == 10
        except StoreError:
            continue
    store.put_many([(IDS[50], b"after")])
    assert store.get_many([IDS[50]]) == [b"after"], name
    store.close()


def test_a_file_that_is_no_database_is_put_aside_and_not_lost(path: Path) -> None:
    path.write_text("a letter " * 1000)
    store = SqliteStore(path, ttl=100, max_bytes=16 << 20)
    with pytest.raises(StoreError):
        store.ping()
    store.ping()
    store.close()
    assert path.with_name("blocks.db.damaged").read_text().startswith("a letter")


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE letters (text)")
    before = path.read_bytes()
    store = SqliteStore(path, ttl=100, max_bytes=16 << 20)
    for _ in range(2):
        with pytest.raises(StoreError, match="another program's database"):
            store.put_many([(IDS[0], b"x")])
    store.close()
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_writer_elsewhere_delays_no_reader_and_a_writer_not_for_long(store: SqliteStore, path: Path) -> None:
    store.put_many([(IDS[0], b"x")])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.get_many([IDS[0]]) == [b"x"]
        with pytest.raises(StoreError, match="locked"):
            store.put_many([(IDS[1], b"y")])
    store.put_many([(IDS[1], b"y")])
    assert present(store, 2) == [0, 1]


def test_a_read_only_store_can_still_be_read(store: SqliteStore) -> None:
    store.put_many([(IDS[0], b"x")])
    store._writer.run(lambda connection: connection.execute("PRAGMA query_only = 1"))
    with pytest.raises(StoreFullError, match="readonly"):
        store.put_many([(IDS[1], b"y")])
    assert store.get_many([IDS[0]]) == [b"x"]


@pytest.mark.slow
def test_a_full_disk_rejects_writes_and_damages_nothing(path: Path) -> None:
    """The limit of a process's own file sizes stands for the disk's."""
    code = """
import resource, signal, sys
from pathlib import Path
from cache import StoreError, StoreFullError
from cache.sqlite import SqliteStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = SqliteStore(Path(sys.argv[1]), ttl=100, max_bytes=1 << 30)
store.put_many([(bytes(32), b"first")])
resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, resource.RLIM_INFINITY))
outcomes = set()
for n in range(1, 30):
    try:
        store.put_many([(bytes([n]) * 32, bytes(1 << 20))])
    except StoreError as error:
        outcomes.add(type(error).__name__)
assert outcomes, "it was never full"
assert store.get_many([bytes(32)]) == [b"first"], "what was there is lost"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.put_many([(b"x" * 32, b"last")])
assert store.get_many([b"x" * 32]) == [b"last"]
store.close()
"""
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def _fill(path: Path, first: int) -> None:
    store = SqliteStore(path, ttl=100, max_bytes=16 << 20)
    for n in range(first, first + 25):
        store.put_many([(IDS[n], IDS[n] * 5000)], [IDS[n]])
        store.get_many(IDS[first : n + 1])
    store.close()


@pytest.mark.slow
def test_many_processes_begin_and_fill_one_file_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(path, first)) for first in range(0, 100, 25)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    store = SqliteStore(path, ttl=100, max_bytes=16 << 20)
    values = store.get_many(IDS[:100])
    assert [value for n, value in enumerate(values) if value not in (None, IDS[n] * 5000)] == []
    assert sum(value is not None for value in values) > 80
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store.close()


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_whole_file(path: Path) -> None:
    for number in range(5):
        writer = multiprocessing.get_context("spawn").Process(target=_fill_forever, args=(path,))
        writer.start()
        store = SqliteStore(path, ttl=100, max_bytes=16 << 20)
        before = store.size()
        for _ in range(500):
            if store.size() > before + (number + 1) * PAGE_BYTES:
                break
            time.sleep(0.01)
        writer.kill()
        writer.join()
        store.put_many([(IDS[199], b"after")])
        assert store.get_many([IDS[199]]) == [b"after"]
        found = store.get_many(IDS[:100])
        assert [n for n, value in enumerate(found) if value not in (None, IDS[n] * 5000)] == []
        store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _fill_forever(path: Path) -> None:
    store = SqliteStore(path, ttl=100, max_bytes=16 << 20)
    while True:
        for n in range(100):
            store.put_many([(IDS[n], IDS[n] * 5000)], [IDS[n]])
        store.delete(IDS[:100])


def _overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
