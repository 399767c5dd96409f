"""An outbox of KV blocks to delete, so that an outage or a restart only delays a deletion."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from typing import Final

from cache.circuit_breaker import CircuitBreaker
from cache.database import Database
from cache.errors import StoreError

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS block_deletions (
    number INTEGER PRIMARY KEY, passes INTEGER NOT NULL, ids BLOB NOT NULL
) STRICT;
"""
PASSES: Final = 2
"""Successful passes after which blocks count as deleted. After the first, a stopping engine, or a write sent to a store
that did not answer, may store a block again."""
ROUND_SECONDS: Final = 5.0
"""Seconds between two passes: longer than a stopping engine takes to store its last blocks."""
ID_BYTES: Final = 32
_CHUNK: Final = 512
"""Ids per call of the store."""


class BlockDeletions:
    """The outbox, in the conversations' database, so that a response and its blocks are deleted in one transaction."""

    def __init__(self, database: Database, store: CircuitBreaker | None) -> None:
        """Delete from `store`; None means that no blocks are stored."""
        self._database = database
        self._store = store
        self._lock = asyncio.Lock()

    def add(self, connection: sqlite3.Connection, ids: Sequence[bytes]) -> None:
        """Queue block ids for deletion. Call within a transaction in the database's thread."""
        if ids and self._store is not None:
            connection.execute("INSERT INTO block_deletions (passes, ids) VALUES (?, ?)", (PASSES, b"".join(ids)))

    async def finish(self, ids: Sequence[bytes]) -> bool:
        """Delete queued blocks that no engine will store again. Return False if that fails; `run` then retries."""
        if not ids or self._store is None:
            return True
        joined = b"".join(ids)
        async with self._lock:
            try:
                await asyncio.to_thread(self._delete, joined)
            except StoreError:
                return False
            await self._database.run("DELETE FROM block_deletions WHERE ids = ?", (joined,))
            return True

    async def run_pass(self) -> None:
        """Make one pass over all entries. Raises StoreError at the first entry that fails; the rest wait."""
        async with self._lock:
            last = 0
            query = "SELECT number, passes, ids FROM block_deletions WHERE number > ? ORDER BY number LIMIT 1"
            while rows := await self._database.run(query, (last,)):
                [(last, passes, ids)] = rows
                await self._pass(last, passes, ids)

    async def run(self) -> None:
        """Make passes until cancelled. Entries wait while the store is unavailable."""
        while True:
            with contextlib.suppress(StoreError):
                await self.run_pass()
            await asyncio.sleep(ROUND_SECONDS)

    async def _pass(self, number: int, passes: int, ids: bytes) -> None:
        try:
            await asyncio.to_thread(self._delete, ids)
        except StoreError:
            await self._database.run("UPDATE block_deletions SET passes = ? WHERE number = ?", (PASSES, number))
            raise
        if passes > 1:
            await self._database.run("UPDATE block_deletions SET passes = ? WHERE number = ?", (passes - 1, number))
        else:
            await self._database.run("DELETE FROM block_deletions WHERE number = ?", (number,))

    def _delete(self, ids: bytes) -> None:
        assert self._store is not None  # noqa: S101 - without a store `add` queues nothing
        split = [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]
        for at in range(0, len(split), _CHUNK):
            self._store.delete(split[at : at + _CHUNK])
