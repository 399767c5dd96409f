"""One SQLite file, accessed by one thread: a write is on disk when it returns.

Before each use the thread checks that the path still names the file it has open. It reopens a file that was removed or
replaced, so that no write is acknowledged into a file that a restart would not find.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from cache.errors import StoreError
from cache.locks import supports_locks
from cache.sqlite_file import transaction

Row = tuple[Any, ...]
T = TypeVar("T")
Identity = tuple[int, int]
_SHRINK: Final = "PRAGMA incremental_vacuum(1000)"
_LOG_BYTES: Final = 16 << 20
"""Size in bytes to which a checkpoint truncates the write-ahead log."""

log = structlog.get_logger("cache")


class Database:
    """Runs statements in order on a dedicated thread, so that the event loop never waits for the disk."""

    def __init__(
        self, path: Path, schema: str, *, prepare: Callable[[sqlite3.Connection], None] = lambda _: None
    ) -> None:
        """Open or create `path` with the idempotent `schema`, readable only by its owner.

        `prepare` is called with each new connection, in the database's thread. Raises StoreError.
        """
        self._path = path
        self._schema = schema
        self._prepare = prepare
        self._connection: sqlite3.Connection | None = None
        self._files: dict[str, Identity | None] = {}
        """Identities of the open connection's files by suffix: the database and its log."""
        self.generation = 0
        """How often the file was opened. A change means that all of its contents may have changed."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=path.stem)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder = _identity(path.parent)
            self._executor.submit(self._open).result()
        except (OSError, sqlite3.Error) as error:
            self._executor.shutdown()
            raise StoreError(f"{path.name} can't be opened: {_reason(path.parent, error)}") from error
        except BaseException:
            self._executor.shutdown()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the file is open; False after it was replaced by an unusable one."""
        return self._connection is not None

    async def run(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run one statement, commit it, and return its rows. Raises StoreError."""
        return await self.work(lambda connection: _rows(connection, statement, parameters))

    def run_now(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run one statement as `run` does, but block; for use before there is an event loop."""
        with self._errors():
            return self._executor.submit(self._do, lambda c: _rows(c, statement, parameters)).result()

    async def work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in the database's thread and return its result. Raises StoreError."""
        with self._errors():
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._do, work)

    async def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one transaction and roll it back if `work` raises. Raises StoreError."""
        return await self.work(lambda connection: transaction(connection, work))

    async def shrink(self) -> None:
        """Return the space of deleted rows to the file system. Raises StoreError."""
        before = None
        while before != (now := await self.run("PRAGMA freelist_count")):
            before = now
            # A script, because `execute` would stop after one page; in strides, because turns wait for this thread.
            await self.work(lambda connection: connection.executescript(_SHRINK))

    def close(self) -> None:
        """Finish pending statements and close the file."""
        self._executor.submit(self._close).result()
        self._executor.shutdown()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise SQLite's errors as StoreError, with the name of the file: a gateway has several."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path.name}: {error}") from error

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return work(self._current())

    def _current(self) -> sqlite3.Connection:
        """Return a connection to the file that the path names now."""
        if self._connection is None or self._files.get("") != _identity(self._path):
            self._reopen()
        assert self._connection is not None  # noqa: S101 - for the type checker
        return self._connection

    def _reopen(self) -> None:
        """Reopen the file. Raises StoreError if its folder was removed too: the volume may be mounted again later."""
        if self._connection is not None:
            log.error(
                "a database was replaced or removed while the gateway runs: it is opened again",
                file=self._path.name,
                advice="stop the gateway before you restore or remove its files; what was in the old file is not read",
            )
        self._close()
        if _identity(self._path.parent) != self._folder:
            raise StoreError(f"{self._path.name}: the folder {self._path.parent} was removed or replaced; restart")
        self._remove_log()
        self._open()

    def _remove_log(self) -> None:
        """Delete the log of the removed file: SQLite would apply it to the new file and damage that."""
        for suffix in ("-wal", "-shm"):
            path = Path(f"{self._path}{suffix}")
            if self._files.get(suffix) and self._files[suffix] == _identity(path):
                path.unlink(missing_ok=True)
        self._files = {}

    def _open(self) -> None:
        self._path.touch(mode=0o600)
        connection = sqlite3.connect(self._path, timeout=5.0, isolation_level=None)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only affects a new file; lets `shrink` work
            connection.execute("PRAGMA secure_delete = ON")  # overwrites deleted data
            connection.execute("PRAGMA journal_mode = WAL")  # allows readers and other processes during a write
            connection.execute("PRAGMA synchronous = FULL")  # an acknowledged turn survives a power failure
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            connection.executescript(self._schema)
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._files = {suffix: _identity(Path(f"{self._path}{suffix}")) for suffix in ("", "-wal", "-shm")}
        self.generation += 1

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _rows(connection: sqlite3.Connection, statement: str, parameters: Sequence[Any]) -> list[Row]:
    return connection.execute(statement, parameters).fetchall()


def _reason(folder: Path, error: OSError | sqlite3.Error) -> str:
    """Return why a file cannot be opened: SQLite reports a file system without locks as a locked database."""
    with suppress(OSError):
        if not supports_locks(folder):
            return f"the file system of {folder} supports no file locks; put state_dir on a local disk"
    return str(error)


def _identity(path: Path) -> Identity | None:
    """Return device and inode of the file at `path`, or None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
