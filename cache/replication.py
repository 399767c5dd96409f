"""Replicates stored conversations to the Redis that gateways share, and follows deletions by other gateways."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from cache.copies import Copies, Deletion, is_before
from cache.database import Database
from cache.document_tables import FADING
from cache.errors import StoreError
from cache.records import Progress, Row

BATCH: Final = 16
"""Records copied from the outbox per query."""
RETRY_SECONDS: Final = 1.0
"""Seconds to wait before copying is retried."""
JOURNAL_SECONDS: Final = 1.0
"""Seconds between two reads of the journal of deletions by other gateways."""
log = structlog.get_logger("cache")


class Replication:
    """The outbox of one database, and its position in the journal of deletions."""

    def __init__(
        self,
        database: Database,
        copies: Copies,
        *,
        clock: Callable[[], float],
        on_deletion: Callable[[Deletion], Awaitable[None]],
    ) -> None:
        """`on_deletion` deletes the local record after another gateway has deleted it."""
        self.copies = copies
        self._database = database
        self._clock = clock
        self._on_deletion = on_deletion
        self._outbox_filled = asyncio.Event()
        self._outbox_filled.set()  # an earlier process may have left records in the outbox

    async def run(self) -> None:
        """Drain the outbox and follow the journal, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._drain_outbox())
            tasks.create_task(self._follow_journal())

    async def copy(self, row: Row) -> None:
        """Copy a record that has just been written, unless its response still runs. If that fails, `run` retries."""
        if row.progress == Progress.RUNNING:
            return
        try:
            await self._copy(row)
        except StoreError:
            self._outbox_filled.set()

    async def renew(self, tenant: str, id_: str) -> None:
        """Copy a record again, which extends the lifetime of its copy."""
        await self._database.run("UPDATE records SET copied = 0 WHERE tenant = ? AND id = ?", (tenant, id_))
        self._outbox_filled.set()

    async def renew_members(self, before: float) -> None:
        """Copy again the turns of conversations that were copied `before`, so that other gateways still find them."""
        while await self._database.run(FADING, (int(before),)):
            self._outbox_filled.set()

    async def get(self, tenant: str, id_: str) -> bytes | None:
        """Return the copy of a record, or None if there is none. Raises StoreError if Redis cannot be reached."""
        return await asyncio.to_thread(self.copies.get, tenant, id_)

    async def is_deleted(self, tenant: str, id_: str) -> bool:
        """Return whether another gateway has deleted the record; False while Redis cannot be reached."""
        if not self.copies.reachable:
            return False
        try:
            return await asyncio.to_thread(self.copies.is_deleted, tenant, id_)
        except StoreError:
            return False

    async def _drain_outbox(self) -> None:
        query = "SELECT tenant, id, progress, sealed FROM records WHERE copied = 0 AND progress > 0 LIMIT ?"
        while True:
            await self._outbox_filled.wait()
            try:
                rows = [Row(*row) for row in await self._database.run(query, (BATCH,))]
                if not rows:
                    self._outbox_filled.clear()
                for row in rows:
                    await self._copy(row)
            except StoreError:
                await asyncio.sleep(RETRY_SECONDS)

    async def _copy(self, row: Row) -> None:
        """Copy one record and remove it from the outbox. Raises StoreError if the copy fails; the record stays."""
        if row.progress == Progress.GONE:
            deletion = Deletion(row.tenant, row.id, self._clock())
            position = await asyncio.to_thread(self.copies.delete, deletion)
            await self._check_journal()
            await self._save_position(position)
        else:
            await asyncio.to_thread(self.copies.put, row.tenant, row.id, row.sealed)
        # `progress` is compared because the record may have been written again meanwhile.
        done = "UPDATE records SET copied = ? WHERE tenant = ? AND id = ? AND progress = ?"
        await self._database.run(done, (int(self._clock()), row.tenant, row.id, row.progress))

    async def _follow_journal(self) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await self._follow()
            await asyncio.sleep(JOURNAL_SECONDS)

    async def _follow(self) -> None:
        """Delete what other gateways have deleted since the last call, and republish deletions that Redis has lost."""
        if not self.copies.reachable:
            return
        await self._check_journal()
        rows = await self._database.run("SELECT seen FROM journal")
        seen = rows[0][0] if rows else ""
        end = await asyncio.to_thread(self.copies.journal_end)
        while is_before(seen, end):
            entries = await asyncio.to_thread(self.copies.journal_after, seen)
            for _, deletion in entries:
                if deletion is not None:
                    await self._on_deletion(deletion)
            if not await self._check_journal():
                return  # the next call reads the journal from its beginning
            seen = entries[-1][0] if entries else end
            await self._save_position(seen, seen=True)

    async def _check_journal(self) -> bool:
        """Publish all deletions again if Redis has lost the newest known entry of the journal; return False then.

        Called before a newer entry is noted, which would hide the loss: an emptied Redis may have new entries already.
        """
        rows = await self._database.run("SELECT newest FROM journal")
        newest = rows[0][0] if rows else ""
        if not newest or await asyncio.to_thread(self.copies.journal_has, newest):
            return True
        log.warning("Redis has lost deletions: those that this gateway knows of are published again")
        await self._database.run("UPDATE records SET copied = 0 WHERE progress = 3")
        await self._database.run("DELETE FROM journal")
        self._outbox_filled.set()
        return False

    async def _save_position(self, position: str, *, seen: bool = False) -> None:
        """Save a position of the journal; `seen`: this gateway has read the journal up to there.

        Redis has lost data if the newest saved entry is missing in the journal.
        """

        def work(connection: sqlite3.Connection) -> None:
            rows = connection.execute("SELECT seen, newest FROM journal").fetchall()
            before, newest = rows[0] if rows else ("", "")
            newest = position if is_before(newest, position) else newest
            connection.execute(
                "INSERT OR REPLACE INTO journal VALUES (1, ?, ?)", (position if seen else before, newest)
            )

        await self._database.transact(work)
