"""Reading many documents and records at once, next to the archive that writes them, in a thread of the caller's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from cache.errors import StoreError
from cache.sealing import Sealer

_DOCUMENTS: Final = """
SELECT id, updated, sealed FROM documents
WHERE tenant = ? AND gone = 0 AND (updated, id) < (?, ?) ORDER BY updated DESC, id DESC LIMIT ?
"""
_RECORD: Final = "SELECT sealed FROM records WHERE tenant = ? AND id = ? AND progress < 3"
_CHUNK: Final = 64
"""Documents read at a time."""


class Position(NamedTuple):
    """A place in the list of a tenant's documents, the last changed first."""

    updated: int
    id: str


START: Final = Position(1 << 62, "")


class Snapshot:
    """One tenant's documents and records. It blocks, and waits for no other use of the file. Raises StoreError."""

    def __init__(self, path: Path, tenant: str, *, documents: Sealer, records: Sealer) -> None:
        """Read the archive's file `path`; the sealers open what it has sealed."""
        self._path = path
        self._tenant = tenant
        self._documents = documents
        self._records = records
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open the file for a while."""
        try:
            self._connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)
            try:
                yield
            finally:
                self._connection.close()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path.name}: {error}") from error

    def after(self, id_: str) -> Position | None:
        """Return the position of a document; None if there is none."""
        query = "SELECT updated FROM documents WHERE tenant = ? AND id = ? AND gone = 0"
        row = self._opened.execute(query, (self._tenant, id_)).fetchone()
        return None if row is None else Position(row[0], id_)

    def documents(self, position: Position = START) -> Iterator[tuple[str, bytes]]:
        """Yield id and body of the documents after a position, the last changed first."""
        while rows := self._opened.execute(_DOCUMENTS, (self._tenant, *position, _CHUNK)).fetchall():
            for id_, _, sealed in rows:
                body = self._documents.open(sealed, f"document\0{self._tenant}\0{id_}".encode())
                if body is not None:
                    yield id_, body
            position = Position(rows[-1][1], rows[-1][0])

    def record(self, id_: str) -> bytes | None:
        """Return a record, or None if it is not stored here."""
        row = self._opened.execute(_RECORD, (self._tenant, id_)).fetchone()
        return None if row is None else self._records.open(row[0], f"{self._tenant}\0{id_}".encode())

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._connection is not None  # noqa: S101 - for the type checker
        return self._connection
