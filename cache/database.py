"""One SQLite file behind one thread: what is written is on disk before the writer goes on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cache.errors import StoreError

Row = tuple[Any, ...]
_SHRINK: Final = "PRAGMA incremental_vacuum(1000)"


class Database:
    """Runs statements in order on a thread of its own, so that the event loop never waits for the disk."""

    def __init__(self, path: Path, schema: str) -> None:
        """Open or create `path` with the idempotent `schema`, readable by its owner alone. Raises StoreError."""
        self._name = path.name
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=path.stem)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._connection = self._executor.submit(self._open, path, schema).result()
        except (OSError, sqlite3.Error) as error:
            self._executor.shutdown()
            raise StoreError(f"{path.name} can't be opened: {error}") from error

    @staticmethod
    def _open(path: Path, schema: str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=5.0, isolation_level=None)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file; what is deleted gives its space back
        connection.execute("PRAGMA secure_delete = ON")  # and is overwritten
        connection.execute("PRAGMA journal_mode = WAL")  # readers beside the writer, and other processes
        connection.execute("PRAGMA synchronous = FULL")  # an acknowledged turn outlives a power cut too
        connection.executescript(schema)
        return connection

    async def run(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run one statement, committed when this returns, and give its rows. Raises StoreError."""
        with self._named():
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, statement, parameters)

    def run_now(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Likewise, before there is an event loop."""
        with self._named():
            return self._executor.submit(self._run, statement, parameters).result()

    async def shrink(self) -> None:
        """Give the space of what was deleted back to the disk. Raises StoreError."""
        loop = asyncio.get_running_loop()
        before = None
        while before != (now := await self.run("PRAGMA freelist_count")):
            before = now
            with self._named():
                # A script, as `execute` would stop after one page; in strides, as turns wait for this thread.
                await loop.run_in_executor(self._executor, self._connection.executescript, _SHRINK)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Tell of which file SQLite complains: whoever reads that has several."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self._name}: {error}") from error

    def _run(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        return self._connection.execute(statement, parameters).fetchall()

    def close(self) -> None:
        """Finish what was begun and close the file."""
        self._executor.submit(self._connection.close).result()
        self._executor.shutdown()
