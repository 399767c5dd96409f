"""The file of a SQLite store: created on first use, and replaced after damage, while other processes have it open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

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
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS blocks (
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, expires REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS by_use ON blocks (used);
CREATE TABLE IF NOT EXISTS states (number INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS marks (only INTEGER PRIMARY KEY CHECK (only = 1), fingerprint TEXT NOT NULL) STRICT;
"""
# `used` counts renewals, because clocks jump. Values are in a separate table, because a renewal rewrites the whole row.


class SqliteFile:
    """One path, and the database file that it names now."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        """Use the absolute `path`. If `durable`, the file survives a power failure undamaged."""
        self.path = path
        self._durable = durable

    def open(self) -> tuple[sqlite3.Connection, tuple[int, int]]:
        """Return a connection and the identity of its file. Raises sqlite3.Error or OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._file_lock():
            if not self.path.exists() or self.path.stat().st_size < HEADER_BYTES:
                self._set_aside()  # a process that still has the old file open notices its changed identity
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
                return connection, self.identity()
            except BaseException:
                connection.close()
                raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if tables and pragma(connection, "application_id") != APPLICATION:
            raise StoreError(f"cache: {self.path} is another program's database; name another file in `cache`")
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
        status = self.path.stat()
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
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if _is_ours(self.path):
                self.path.unlink()
            else:
                self.path.rename(self.path.with_name(f"{self.path.name}.damaged"))

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        """Exclude other processes from opening and replacing the file: the change to WAL ignores the busy timeout."""
        with os.fdopen(os.open(f"{self.path}-lock", os.O_CREAT | os.O_RDWR, 0o600), "rb") as lock:
            until = time.monotonic() + BUSY_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise StoreError(f"cache: {self.path} is locked by another process") from error
                    time.sleep(0.01)
            yield


class Connection:
    """One SQLite connection with a lock. Raises StoreError instead of SQLite's errors."""

    def __init__(self, file: SqliteFile) -> None:
        """Open `file` on first use, and again after it was replaced."""
        self._file = file
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
                if self._file.identity() == self._identity:
                    return self._connection
            self._disconnect()
        self._connection, self._identity = self._file.open()
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
            self._file.discard(damaged)
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


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """Return the value of a pragma."""
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _is_ours(path: Path) -> bool:
    """Return whether the header has Samovar's application id, or the file is empty."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    return not header or header[68:72] == APPLICATION.to_bytes(4, "big")


def transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run `work` in one transaction and roll it back if `work` raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return result
