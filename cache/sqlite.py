"""A store in one SQLite file, shared by all processes of a machine.

Values of 1.6 MB lie in the file itself: with pages of 64 KiB eight of them are read in 4 ms, as fast as from files of
their own, and nothing can be left behind. The file is a cache: one that is damaged is put away and begun anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from cache.errors import StoreError, StoreFullError

T = TypeVar("T")

APPLICATION: Final = 0x53616D76
"""Written into the file's header: only a file of ours is ever removed."""
HEADER_BYTES: Final = 100
"""Every SQLite database has so many at least."""
PAGE_BYTES: Final = 1 << 16
"""SQLite's largest page: a value of 1.6 MB is 25 of them, not 390."""
LOG_BYTES: Final = 16 << 20
"""The write-ahead log is folded into the file beyond this, and cut back to it."""
BUSY_SECONDS: Final = 1.0
"""How long a writer waits for another process's; readers wait for nobody."""
SPARE: Final = 8
"""One free page in so many is kept for what comes next; beyond that the file shrinks."""
STRIDE_PAGES: Final = 512
"""Pages that one call gives back at most, and likewise 64 values that are past their time: no call takes long."""
SWEEP_SECONDS: Final = 1.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS blocks (
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, expires REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS by_use ON blocks (used);
CREATE TABLE IF NOT EXISTS states (number INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS marks (only INTEGER PRIMARY KEY CHECK (only = 1), fingerprint TEXT NOT NULL) STRICT;
"""
# `used` counts renewals: clocks jump. Values have a table of their own, as renewing a row rewrites all of it.


class SqliteStore:
    """See Store. Opened when first needed, and again when the file was replaced under it."""

    backend = "sqlite"

    def __init__(
        self, path: Path, *, ttl: float, max_bytes: int, durable: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        """Keep values for `ttl` seconds of `clock` in at most `max_bytes`; `durable`: through a power cut."""
        self._path = path.absolute()
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._durable = durable
        self._clock = clock
        self._reader = _Door(self)
        self._writer = _Door(self)

    @property
    def url(self) -> str:
        """What another process opens to share it."""
        return f"sqlite://{quote(str(self._path))}"

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """The values, None where there is none."""
        query = f"SELECT id, value FROM blocks JOIN states USING (number) WHERE id IN ({_marks(ids)}) AND expires > ?"  # noqa: S608 - question marks only
        found = dict(self._reader.run(lambda c: c.execute(query, (*ids, self._clock())).fetchall()))
        return [found.get(id_) for id_ in ids]

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """Which ids have a value."""
        query = f"SELECT id FROM blocks WHERE id IN ({_marks(ids)}) AND expires > ?"  # noqa: S608 - question marks only
        found = {id_ for (id_,) in self._reader.run(lambda c: c.execute(query, (*ids, self._clock())).fetchall())}
        return [id_ in found for id_ in ids]

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """Store values and renew a chain, leaf first. Raises StoreFullError when there is no room."""
        need = sum(len(value) + PAGE_BYTES for _, value in pairs)
        if need > self._max_bytes:
            raise StoreFullError(f"{need} bytes at once are more than all of cache_max_bytes")

        def work(connection: sqlite3.Connection) -> None:
            self._renew(connection, renew)  # first, so that making room spares the parents of what comes
            self._make_room(connection, need)
            expires = self._clock() + self._ttl
            for id_, value in pairs:
                [(number,)] = connection.execute(
                    "INSERT INTO blocks (id, used, expires) VALUES (?, 0, ?) "
                    "ON CONFLICT DO UPDATE SET expires = excluded.expires RETURNING number",
                    (id_, expires),
                ).fetchall()
                connection.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (number, value))
            self._renew(connection, [id_ for id_, _ in reversed(pairs)])
            self._renew(connection, renew)

        self._write(work)

    def touch(self, ids: Sequence[bytes]) -> None:
        """Renew a chain, leaf first."""
        self._write(lambda connection: self._renew(connection, ids))

    def delete(self, ids: Sequence[bytes]) -> None:
        """Drop values."""

        def work(connection: sqlite3.Connection) -> None:
            query = f"SELECT number FROM blocks WHERE id IN ({_marks(ids)})"  # noqa: S608 - question marks only
            _drop(connection, [number for (number,) in connection.execute(query, ids).fetchall()])

        self._write(work)

    def sweep(self) -> None:
        """Drop what is past its time and give its space back."""
        until = time.monotonic() + SWEEP_SECONDS
        before = None
        while time.monotonic() < until and before != (now := self._reader.run(_pages)):
            before = now
            self._write(lambda connection: self._make_room(connection, 0))

    def size(self) -> int:
        """Bytes that all values take, in whole pages."""
        return self._reader.run(_size)

    def read_mark(self) -> str | None:
        """The fingerprint of the key that the values were sealed under."""
        rows = self._reader.run(lambda c: c.execute("SELECT fingerprint FROM marks").fetchall())
        return rows[0][0] if rows else None

    def write_mark(self, fingerprint: str) -> None:
        """Say it."""
        self._write(lambda c: c.execute("INSERT OR REPLACE INTO marks VALUES (1, ?)", (fingerprint,)))

    def ping(self) -> None:
        """Raise StoreError unless the file can be read."""
        self._reader.run(lambda c: c.execute("SELECT 1 FROM blocks LIMIT 1").fetchall())

    def interrupt(self) -> None:
        """End what other threads wait for."""
        self._reader.interrupt()
        self._writer.interrupt()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
        self._reader.close()

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do `work` in one transaction, and then shrink the file if there is much to gain."""

        def transaction(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            pages, free = _pages(connection)
            if free > SPARE and free > pages // SPARE:  # as a script: `execute` would stop after one page
                connection.executescript(f"PRAGMA incremental_vacuum({STRIDE_PAGES})")

        self._writer.run(transaction)

    def _renew(self, connection: sqlite3.Connection, ids: Sequence[bytes]) -> None:
        [(latest,)] = connection.execute("SELECT coalesce(max(used), 0) FROM blocks").fetchall()
        expires = self._clock() + self._ttl
        rows = [(latest + i, expires, id_) for i, id_ in enumerate(ids, 1)]
        connection.executemany("UPDATE blocks SET used = ?, expires = ? WHERE id = ?", rows)

    def _make_room(self, connection: sqlite3.Connection, need: int) -> None:
        """Drop the least recently used while `need` more bytes don't fit, and some of what is past its time."""
        query = "SELECT number, expires, length(value) FROM blocks JOIN states USING (number) ORDER BY used LIMIT 64"
        while True:
            over, dropped = _size(connection) + need - self._max_bytes, []
            for number, expires, length in connection.execute(query).fetchall():
                if over <= 0 and expires > self._clock():
                    break
                dropped.append(number)
                over -= length
            _drop(connection, dropped)
            if over <= 0 or not dropped:
                return

    def open(self) -> tuple[sqlite3.Connection, tuple[int, int]]:
        """A connection, and which file it is of. Raises sqlite3.Error or OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._alone():
            if not self._path.exists() or self._path.stat().st_size < HEADER_BYTES:
                self._put_away()  # others may have it open still: they see that it is another file now
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
                return connection, self.identity()
            except BaseException:
                connection.close()
                raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if tables and _pragma(connection, "application_id") != APPLICATION:
            raise StoreError(f"cache: {self._path} is another program's database; name another file")
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if self._durable else 'OFF'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        if not tables:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN; PRAGMA application_id = {APPLICATION}; {_SCHEMA} COMMIT;")

    def identity(self) -> tuple[int, int]:
        """Which file the path names now. Raises OSError when there is none."""
        status = self._path.stat()
        return status.st_dev, status.st_ino

    def begin_anew(self, damaged: tuple[int, int] | None) -> None:
        """Put the damaged file away, unless another process has done so already."""
        with contextlib.suppress(OSError), self._alone():
            if damaged is not None and self.identity() != damaged:
                return
            self._put_away()

    def _put_away(self) -> None:
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if _is_ours(self._path):
                self._path.unlink()
            else:  # it may be anything: a wrong path in the settings must not cost a file
                self._path.rename(self._path.with_name(f"{self._path.name}.damaged"))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Opening and putting away is one process's at a time: changing to WAL heeds no busy time-out."""
        with os.fdopen(os.open(f"{self._path}-lock", os.O_CREAT | os.O_RDWR, 0o600), "rb") as lock:
            until = time.monotonic() + BUSY_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise StoreError(f"cache: {self._path} is held by another process") from error
                    time.sleep(0.01)
            yield


class _Door:
    """One connection and the lock of those who use it; errors come out as this room's."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._of: tuple[int, int] | None = None

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`. Raises StoreError."""
        with self._lock:
            try:
                return work(self._opened())
            except sqlite3.Error as error:
                raise self._explained(error) from error
            except OSError as error:
                self._drop()
                raise StoreError(f"cache: {error}") from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._store.identity() == self._of:
                    return self._connection
            self._drop()
        self._connection, self._of = self._store.open()
        return self._connection

    def _explained(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
            return StoreFullError(f"cache: {error}")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT):
            return StoreError(f"cache: {error}")
        damaged = self._of
        self._drop()  # whatever it was, a connection made anew sees what is there now
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._store.begin_anew(damaged)
            return StoreError(f"cache: {error}; begun anew")
        return StoreError(f"cache: {error}")

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = self._of = None

    def interrupt(self) -> None:
        """From another thread: end the statement that runs."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.interrupt()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()


def _marks(ids: Sequence[bytes]) -> str:
    return ",".join("?" * len(ids))


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """All pages of the file, and those that are free."""
    return _pragma(connection, "page_count"), _pragma(connection, "freelist_count")


def _size(connection: sqlite3.Connection) -> int:
    pages, free = _pages(connection)
    return (pages - free) * _pragma(connection, "page_size")


def _drop(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    for table in ("blocks", "states"):
        connection.executemany(f"DELETE FROM {table} WHERE number = ?", [(number,) for number in numbers])  # noqa: S608


def _is_ours(path: Path) -> bool:
    """Whether the header says so, or there is nothing to lose."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    return not header or header[68:72] == APPLICATION.to_bytes(4, "big")
