"""A store in one SQLite file, shared by all processes of a machine.

Values of 1.6 MB lie in the file itself: with pages of 64 KiB, eight values are read in 4 ms, as fast as from separate
files, and no orphaned files can remain. The file is only a cache: a damaged file is set aside and created again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cache.errors import StoreFullError
from cache.sqlite_file import PAGE_BYTES, Connection, SqliteFile, pragma, transaction

SPARE: Final = 8
"""One page in SPARE may stay free for the next values; beyond that the file shrinks."""
STRIDE_PAGES: Final = 512
"""Maximum pages that one call frees; likewise it deletes at most 64 expired values, so that no call takes long."""
SWEEP_SECONDS: Final = 1.0
"""Maximum duration of a sweep in seconds."""


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
        self._file = SqliteFile(path.absolute(), durable=durable)
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._clock = clock
        self._reader = Connection(self._file)
        self._writer = Connection(self._file)

    @property
    def url(self) -> str:
        """See Store."""
        return f"sqlite://{quote(str(self._file.path))}"

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
        """Return the bytes that all values take, in whole pages."""
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

        def write(connection: sqlite3.Connection) -> None:
            transaction(connection, work)
            pages, free = _pages(connection)
            if free > SPARE and free > pages // SPARE:  # a script, because `execute` would stop after one page
                connection.executescript(f"PRAGMA incremental_vacuum({STRIDE_PAGES})")

        self._writer.run(write)

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


def _marks(ids: Sequence[bytes]) -> str:
    return ",".join("?" * len(ids))


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the number of all pages of the file and of its free pages."""
    return pragma(connection, "page_count"), pragma(connection, "freelist_count")


def _size(connection: sqlite3.Connection) -> int:
    pages, free = _pages(connection)
    return (pages - free) * pragma(connection, "page_size")


def _drop(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    for table in ("blocks", "states"):
        connection.executemany(f"DELETE FROM {table} WHERE number = ?", [(number,) for number in numbers])  # noqa: S608
