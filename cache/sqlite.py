"""A store in one SQLite file, shared by all processes of a machine.

Values of 1.6 MB lie in the file itself: with pages of 64 KiB, eight values are read in 4 ms, as fast as from separate
files, and no orphaned files can remain. The file is only a cache: a damaged file is set aside and created again.
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
"""SQLite application id, "Samv", in the file's header: only files with this id are ever deleted."""
HEADER_BYTES: Final = 100
"""Size of the SQLite header, and minimum size of a database."""
PAGE_BYTES: Final = 1 << 16
"""SQLite's largest page size: a value of 1.6 MB takes 25 pages instead of 390."""
LOG_BYTES: Final = 16 << 20
"""Size of the write-ahead log at which a checkpoint starts, and to which it truncates the log."""
BUSY_SECONDS: Final = 1.0
"""Seconds that a writer waits for another process's write. Readers never wait."""
SPARE: Final = 8
"""One page in SPARE may stay free for the next values; beyond that the file shrinks."""
STRIDE_PAGES: Final = 512
"""Maximum pages that one call frees; likewise it deletes at most 64 expired values, so that no call takes long."""
SWEEP_SECONDS: Final = 1.0
"""Maximum duration of a sweep in seconds."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS blocks (
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, expires REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS by_use ON blocks (used);
CREATE TABLE IF NOT EXISTS states (number INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS marks (only INTEGER PRIMARY KEY CHECK (only = 1), fingerprint TEXT NOT NULL) STRICT;
"""
# `used` counts renewals, because clocks jump. Values are in a separate table, because a renewal rewrites the whole row.


class SqliteStore:
    """See Store. Opens the file on first use, and again after the file was replaced."""

    backend = "sqlite"

    def __init__(
        self, path: Path, *, ttl: float, max_bytes: int, durable: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        """Use the file `path`, created on first use.

        Values expire after `ttl` seconds of `clock` and take at most `max_bytes`. If `durable`, the file survives a
        power failure undamaged.
        """
        self._path = path.absolute()
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._durable = durable
        self._clock = clock
        self._reader = _Connection(self)
        self._writer = _Connection(self)

    @property
    def url(self) -> str:
        """See Store."""
        return f"sqlite://{quote(str(self._path))}"

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """See Store."""
        query = f"SELECT id, value FROM blocks JOIN states USING (number) WHERE id IN ({_marks(ids)}) AND expires > ?"  # noqa: S608 - question marks only
        found = dict(self._reader.run(lambda c: c.execute(query, (*ids, self._clock())).fetchall()))
        return [found.get(id_) for id_ in ids]

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """See Store."""
        query = f"SELECT id FROM blocks WHERE id IN ({_marks(ids)}) AND expires > ?"  # noqa: S608 - question marks only
        found = {id_ for (id_,) in self._reader.run(lambda c: c.execute(query, (*ids, self._clock())).fetchall())}
        return [id_ in found for id_ in ids]

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """See Store."""
        need = sum(len(value) + PAGE_BYTES for _, value in pairs)
        if need > self._max_bytes:
            raise StoreFullError(f"{need} bytes in one call exceed cache_max_bytes, which is {self._max_bytes}")

        def work(connection: sqlite3.Connection) -> None:
            self._renew(connection, renew)  # first, so that `_make_room` does not evict the new blocks' parents
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
        """See Store."""
        self._write(lambda connection: self._renew(connection, ids))

    def delete(self, ids: Sequence[bytes]) -> None:
        """See Store."""

        def work(connection: sqlite3.Connection) -> None:
            query = f"SELECT number FROM blocks WHERE id IN ({_marks(ids)})"  # noqa: S608 - question marks only
            _drop(connection, [number for (number,) in connection.execute(query, ids).fetchall()])

        self._write(work)

    def sweep(self) -> None:
        """See Store. Stops after SWEEP_SECONDS."""
        until = time.monotonic() + SWEEP_SECONDS
        before = None
        while time.monotonic() < until and before != (now := self._reader.run(_pages)):
            before = now
            self._write(lambda connection: self._make_room(connection, 0))

    def size(self) -> int:
        """See Store. Counts whole pages."""
        return self._reader.run(_size)

    def read_mark(self) -> str | None:
        """See Store."""
        rows = self._reader.run(lambda c: c.execute("SELECT fingerprint FROM marks").fetchall())
        return rows[0][0] if rows else None

    def write_mark(self, fingerprint: str) -> None:
        """See Store."""
        self._write(lambda c: c.execute("INSERT OR REPLACE INTO marks VALUES (1, ?)", (fingerprint,)))

    def ping(self) -> None:
        """See Store. Reads from the file."""
        self._reader.run(lambda c: c.execute("SELECT 1 FROM blocks LIMIT 1").fetchall())

    def interrupt(self) -> None:
        """See Store."""
        self._reader.interrupt()
        self._writer.interrupt()

    def close(self) -> None:
        """See Store."""
        self._writer.close()
        self._reader.close()

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Run `work` in one transaction, then shrink the file if many pages are free."""

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
            if free > SPARE and free > pages // SPARE:  # a script, because `execute` would stop after one page
                connection.executescript(f"PRAGMA incremental_vacuum({STRIDE_PAGES})")

        self._writer.run(transaction)

    def _renew(self, connection: sqlite3.Connection, ids: Sequence[bytes]) -> None:
        [(latest,)] = connection.execute("SELECT coalesce(max(used), 0) FROM blocks").fetchall()
        expires = self._clock() + self._ttl
        rows = [(latest + i, expires, id_) for i, id_ in enumerate(ids, 1)]
        connection.executemany("UPDATE blocks SET used = ?, expires = ? WHERE id = ?", rows)

    def _make_room(self, connection: sqlite3.Connection, need: int) -> None:
        """Evict the least recently used values until `need` more bytes fit, and some expired values."""
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
        """Return a connection and the identity of its file. Raises sqlite3.Error or OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._file_lock():
            if not self._path.exists() or self._path.stat().st_size < HEADER_BYTES:
                self._set_aside()  # a process that still has the old file open notices its changed identity
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
            raise StoreError(f"cache: {self._path} is another program's database; name another file in `cache`")
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if self._durable else 'OFF'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        if not tables:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN; PRAGMA application_id = {APPLICATION}; {_SCHEMA} COMMIT;")

    def identity(self) -> tuple[int, int]:
        """Return device and inode of the file that the path names now. Raises OSError if there is none."""
        status = self._path.stat()
        return status.st_dev, status.st_ino

    def discard(self, damaged: tuple[int, int] | None) -> None:
        """Set the damaged file aside, unless another process has already replaced it."""
        with contextlib.suppress(OSError), self._file_lock():
            if damaged is not None and self.identity() != damaged:
                return
            self._set_aside()

    def _set_aside(self) -> None:
        """Delete the file if it is a Samovar cache, else rename it: a wrong path in `cache` must not destroy data."""
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if _is_ours(self._path):
                self._path.unlink()
            else:
                self._path.rename(self._path.with_name(f"{self._path.name}.damaged"))

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        """Exclude other processes from opening and replacing the file: the change to WAL ignores the busy timeout."""
        with os.fdopen(os.open(f"{self._path}-lock", os.O_CREAT | os.O_RDWR, 0o600), "rb") as lock:
            until = time.monotonic() + BUSY_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise StoreError(f"cache: {self._path} is locked by another process") from error
                    time.sleep(0.01)
            yield


class _Connection:
    """One SQLite connection with a lock. Raises StoreError instead of SQLite's errors."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` with the connection. Raises StoreError."""
        with self._lock:
            try:
                return work(self._current())
            except sqlite3.Error as error:
                raise self._handle(error) from error
            except OSError as error:
                self._disconnect()
                raise StoreError(f"cache: {error}") from error

    def _current(self) -> sqlite3.Connection:
        """Return a connection to the file that the path names now."""
        if self._connection is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._store.identity() == self._identity:
                    return self._connection
            self._disconnect()
        self._connection, self._identity = self._store.open()
        return self._connection

    def _handle(self, error: sqlite3.Error) -> StoreError:
        """Return `error` as StoreError. Reconnect after a serious error, and discard a damaged file."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
            return StoreFullError(f"cache: {error}")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT):
            return StoreError(f"cache: {error}")
        damaged = self._identity
        self._disconnect()  # a new connection sees the current state of the file
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._store.discard(damaged)
            return StoreError(f"cache: {error}; the damaged file is replaced by a new one")
        return StoreError(f"cache: {error}")

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = self._identity = None

    def interrupt(self) -> None:
        """Interrupt the running statement, from another thread."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.interrupt()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._disconnect()


def _marks(ids: Sequence[bytes]) -> str:
    return ",".join("?" * len(ids))


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the number of all pages of the file and of its free pages."""
    return _pragma(connection, "page_count"), _pragma(connection, "freelist_count")


def _size(connection: sqlite3.Connection) -> int:
    pages, free = _pages(connection)
    return (pages - free) * _pragma(connection, "page_size")


def _drop(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    for table in ("blocks", "states"):
        connection.executemany(f"DELETE FROM {table} WHERE number = ?", [(number,) for number in numbers])  # noqa: S608


def _is_ours(path: Path) -> bool:
    """Return whether the header has Samovar's application id, or the file is empty."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    return not header or header[68:72] == APPLICATION.to_bytes(4, "big")
