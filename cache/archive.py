"""Conversations at rest: sealed records, on disk when they are acknowledged, and copied to where other gateways look.

A copy is made at once when that store answers in time, and from an outbox (the rows that are not copied yet) when it
does not: an outage delays copies and loses none. A deleted record leaves a tombstone at every gateway, which publishes
it again when the shared store has lost it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from cache.block_deletions import BlockDeletions
from cache.circuit_breaker import CircuitBreaker
from cache.clock import DAY, ElapsedClock, Reading, plausible_gap
from cache.copies import Copies, Deletion, is_before, name
from cache.database import Database
from cache.errors import StoreError
from cache.keys import KeyRing
from cache.quota import Quota
from cache.records import (
    BURY,
    CLAMP,
    NEVER,
    NEWEST,
    PUT,
    READ_CLOCK,
    SAVE_CLOCK,
    SCHEMA,
    SWEEP,
    Progress,
    Row,
)
from cache.sealing import Sealer

BATCH: Final = 16
"""Records that leave the outbox in one go."""
RENEW_SECONDS: Final = 86_400.0
"""A record that is read is renewed when its last renewal is so long ago: not at every turn."""
SWEEP_SECONDS: Final = 3_600.0
RETRY_SECONDS: Final = 1.0
JOURNAL_SECONDS: Final = 1.0
"""Seconds between two looks for what other gateways have deleted."""
TOMBSTONE_SECONDS: Final = 7 * 86_400.0
log = structlog.get_logger("cache")


class Archive:
    """Records by tenant and id. All methods raise StoreError when the disk fails, and only then.

    One exception: a record that is not on this disk while the copies can't be asked may exist elsewhere, so `get`
    raises rather than deny it.
    """

    def __init__(
        self,
        path: Path,
        keys: KeyRing,
        *,
        ttl: float | None,
        tombstone_ttl: float = TOMBSTONE_SECONDS,
        tenant_bytes: int | None = None,
        copies: Copies | None = None,
        blocks: CircuitBreaker | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Open or create `path`; records unused for `ttl` seconds go, with None none does.

        Tombstones go after `tombstone_ttl` seconds. A tenant's oldest records go beyond `tenant_bytes`. `copies` are
        shared with other gateways, `blocks` is the store of KV blocks; both stay open. Records expire by `clock`;
        without one, by an ElapsedClock that continues from process to process.

        Raises StoreError, or KeyMismatchError when it was sealed under a key that is not among `keys`.
        """
        self._path = path
        self._keys = keys
        self._quota = Quota(tenant_bytes)
        self._database = Database(path, SCHEMA, prepare=self._prepare)
        self._sealer = Sealer(keys.derive("turns"))
        self._ttl = ttl
        self._tombstone_ttl = tombstone_ttl
        self._copies = copies
        self.blocks = BlockDeletions(self._database, blocks)
        self.on_deletion: Callable[[str, str], Awaitable[None]] = self.bury
        """Called with tenant and id when another gateway has deleted a record; has to bury it."""
        self._elapsed: ElapsedClock | None = None
        self._behind = asyncio.Event()
        self._behind.set()  # an earlier process may have left something in the outbox
        try:
            self._clock = clock or self._resume_clock(path.name)
        except BaseException:
            self._database.close()
            raise

    async def put(self, tenant: str, id_: str, body: bytes, progress: Progress) -> bool:
        """Write a record; False when one is there that has ended. On disk, and mostly copied, when this returns."""
        row = Row(tenant, id_, progress, self._sealer.seal(body, name(tenant, id_)))
        if not await self._database.run(PUT, (tenant, id_, progress, self._expiry(), row.sealed)):
            return False
        with contextlib.suppress(StoreError):  # of a damaged file; the record itself is on disk
            await self._database.transact(lambda connection: self._quota.enforce(connection, tenant, id_))
        await self._copy_now(row)
        return True

    async def take_dropped(self, tenant: str) -> int:
        """Return how many records of a tenant went for want of room since this was last asked."""
        return await self._database.transact(lambda connection: self._quota.take_dropped(connection, tenant))

    async def get(self, tenant: str, id_: str) -> bytes | None:
        """A record of this tenant's; None when there is none, or it was sealed under a key that is gone.

        What cannot be read here, from a damaged file, is looked for among the copies.
        """
        query = "SELECT progress, sealed, expires, copied FROM records WHERE tenant = ? AND id = ?"
        try:
            rows = await self._database.run(query, (tenant, id_))
        except StoreError:
            copy = await self._get_copy(tenant, id_)
            if copy is None:
                raise
            return copy
        if not rows:
            return await self._get_copy(tenant, id_)
        progress, sealed, expires, copied = rows[0]
        if progress == Progress.GONE or (self._ttl is not None and expires < self._clock()):
            return None
        if await self._is_deleted_elsewhere(tenant, id_):
            await self.on_deletion(tenant, id_)
            return None
        await self._renew(tenant, id_, expires, copied)
        body = self._sealer.open(sealed, name(tenant, id_))
        return await self._get_copy(tenant, id_) if body is None else body

    async def get_local(self, tenant: str, id_: str) -> bytes | None:
        """A record as it lies on this disk, whatever other gateways know of it."""
        query = "SELECT sealed FROM records WHERE tenant = ? AND id = ? AND progress < 3"
        rows = await self._database.run(query, (tenant, id_))
        return self._sealer.open(rows[0][0], name(tenant, id_)) if rows else None

    async def is_deleted(self, tenant: str, id_: str) -> bool:
        """Return whether a record was deleted, here or, as far as the copies answer, at another gateway."""
        rows = await self._database.run("SELECT progress FROM records WHERE tenant = ? AND id = ?", (tenant, id_))
        if rows and rows[0][0] == Progress.GONE:
            return True
        return await self._is_deleted_elsewhere(tenant, id_)

    async def delete(self, tenant: str, id_: str, blocks: Sequence[bytes] = ()) -> bool:
        """Delete a record everywhere; False when there is none. Its KV `blocks` are noted to be deleted as well.

        Nothing is left here without copies, as then nobody can bring the record back.
        """
        if await self.get(tenant, id_) is None:
            return False
        await self._bury(tenant, id_, blocks, copied=0)
        await self._copy_now(Row(tenant, id_, Progress.GONE, b""))
        return True

    async def bury(self, tenant: str, id_: str, blocks: Sequence[bytes] = ()) -> None:
        """Delete a record here that another gateway has deleted everywhere."""
        await self._bury(tenant, id_, blocks, copied=int(self._clock()))

    async def running(self) -> list[tuple[str, str, bytes]]:
        """Tenant, id and body of all records that have not ended: after a crash, what was under way."""
        query = "SELECT tenant, id, progress, sealed FROM records WHERE progress = 0"
        rows = [Row(*row) for row in await self._database.run(query)]
        opened = [(row, self._sealer.open(row.sealed, name(row.tenant, row.id))) for row in rows]
        return [(row.tenant, row.id, body) for row, body in opened if body is not None]

    async def keep(self) -> None:
        """Empty both outboxes, hear of deletions, and drop what is past its time. Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for loop in (self._sweep_often(), self.blocks.keep()):
                tasks.create_task(loop)
            if self._copies is not None:
                for loop in (self._drain(), self._follow_often()):
                    tasks.create_task(loop)

    async def sweep(self) -> None:
        """Drop what is past its time or beyond the quota, and give its space back."""
        if self._ttl is not None:  # records may have been stored while none expired
            while await self._database.run(CLAMP, (self._expiry(),)):
                continue
        while await self._database.run(SWEEP, (self._clock(), self._ttl is not None)):
            continue
        while await self._database.transact(self._quota.enforce_all):
            continue
        if self._elapsed is not None:
            await self._database.run(SAVE_CLOCK, self._elapsed.read())
        await self._database.shrink()

    async def follow(self) -> None:
        """Bury what other gateways have deleted since the last call, and publish again what Redis has lost."""
        if self._copies is None or not self._copies.reachable:
            return
        await self._check_journal(self._copies)
        rows = await self._database.run("SELECT seen FROM journal")
        seen = rows[0][0] if rows else ""
        end = await asyncio.to_thread(self._copies.journal_end)
        while is_before(seen, end):
            entries = await asyncio.to_thread(self._copies.journal_after, seen)
            for _, deletion in entries:
                if deletion is not None:
                    await self._hear(deletion)
            if not await self._check_journal(self._copies):
                return  # the next call reads the journal from its beginning
            seen = entries[-1][0] if entries else end
            await self._note_position(seen, seen=True)

    def close(self) -> None:
        """Close the file; the outbox waits in it for the next start."""
        if self._elapsed is not None:
            with contextlib.suppress(StoreError):  # the reading of the last sweep is there
                self._database.run_now(SAVE_CLOCK, self._elapsed.read())
        self._database.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check the key of a file that was opened, and count what lies in it. Raises KeyMismatchError."""
        found = connection.execute("SELECT fingerprint FROM marks").fetchone()
        if self._keys.check(found[0] if found else None, str(self._path)):
            connection.execute("INSERT OR REPLACE INTO marks VALUES (1, ?)", (self._keys.fingerprints[0],))
        with contextlib.suppress(sqlite3.DatabaseError):  # a damaged file is served as far as it can be read
            self._quota.count(connection)

    def _resume_clock(self, name: str) -> ElapsedClock:
        """Return the clock that continues from the last process's, or from the newest record of an older version."""
        last, ttl = None, self._ttl or self._tombstone_ttl
        with contextlib.suppress(StoreError):  # of a damaged file, which is served as far as it can be read
            rows = self._database.run_now(READ_CLOCK) or self._database.run_now(NEWEST, (ttl, ttl))
            last = Reading(*rows[0]) if rows else None
        self._elapsed = ElapsedClock(last, longest=plausible_gap(ttl))
        if self._elapsed.jump:
            log.warning(
                "the system clock is far past the last use of the conversations: no conversation expires for that time",
                file=name,
                days=round(self._elapsed.jump / DAY, 1),
                advice="if the clock is wrong, set it (timedatectl) and restart; if it is right, nothing is to be done",
            )
        with contextlib.suppress(StoreError):
            self._database.run_now(SAVE_CLOCK, self._elapsed.read())
        return self._elapsed

    def _expiry(self) -> float:
        return NEVER if self._ttl is None else self._clock() + self._ttl

    async def _sweep_often(self) -> None:
        while True:
            with contextlib.suppress(StoreError):  # of the disk; it is tried again
                await self.sweep()
            await asyncio.sleep(SWEEP_SECONDS)

    async def _follow_often(self) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await self.follow()
            await asyncio.sleep(JOURNAL_SECONDS)

    async def _drain(self) -> None:
        query = "SELECT tenant, id, progress, sealed FROM records WHERE copied = 0 AND progress > 0 LIMIT ?"
        while True:
            await self._behind.wait()
            try:
                rows = [Row(*row) for row in await self._database.run(query, (BATCH,))]
                if not rows:
                    self._behind.clear()
                for row in rows:
                    await self._copy(row)
            except StoreError:
                await asyncio.sleep(RETRY_SECONDS)

    async def _copy_now(self, row: Row) -> None:
        if self._copies is None or row.progress == Progress.RUNNING:
            return
        try:
            await self._copy(row)
        except StoreError:
            self._behind.set()

    async def _copy(self, row: Row) -> None:
        """Take one record out of the outbox. Raises StoreError when it has to stay."""
        assert self._copies is not None  # noqa: S101
        if row.progress == Progress.GONE:
            deletion = Deletion(row.tenant, row.id, self._clock())
            position = await asyncio.to_thread(self._copies.delete, deletion)
            await self._check_journal(self._copies)
            await self._note_position(position)
        else:
            await asyncio.to_thread(self._copies.put, row.tenant, row.id, row.sealed)
        # Unless it was written anew meanwhile.
        done = "UPDATE records SET copied = ? WHERE tenant = ? AND id = ? AND progress = ?"
        await self._database.run(done, (int(self._clock()), row.tenant, row.id, row.progress))

    async def _bury(self, tenant: str, id_: str, blocks: Sequence[bytes], *, copied: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if self._copies is None:
                connection.execute("DELETE FROM records WHERE tenant = ? AND id = ?", (tenant, id_))
            else:
                connection.execute(BURY, (tenant, id_, copied, self._clock() + self._tombstone_ttl))
            self.blocks.add(connection, blocks)

        await self._database.transact(work)

    async def _hear(self, deletion: Deletion) -> None:
        """Bury what another gateway has deleted, unless that is done, or too long ago for a tombstone of nothing."""
        query = "SELECT progress FROM records WHERE tenant = ? AND id = ?"
        rows = await self._database.run(query, (deletion.tenant, deletion.id))
        fresh = deletion.at + self._tombstone_ttl > self._clock()
        if not (rows[0][0] < Progress.GONE if rows else fresh):
            return
        try:
            await self.on_deletion(deletion.tenant, deletion.id)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - a record whose KV can't be named is deleted nevertheless
            log.error("KV blocks of a deleted response can't be named; they go after cache_ttl", reason=repr(error))
            await self.bury(deletion.tenant, deletion.id)

    async def _check_journal(self, copies: Copies) -> bool:
        """Publish all deletions again if Redis has lost the newest known entry of the journal; return False then.

        Called before a newer entry is noted, which would hide the loss: an emptied Redis may have new entries already.
        """
        rows = await self._database.run("SELECT newest FROM journal")
        newest = rows[0][0] if rows else ""
        if not newest or await asyncio.to_thread(copies.journal_has, newest):
            return True
        log.warning("Redis has lost deletions: those that this gateway knows of are published again")
        await self._database.run("UPDATE records SET copied = 0 WHERE progress = 3")
        await self._database.run("DELETE FROM journal")
        self._behind.set()
        return False

    async def _note_position(self, position: str, *, seen: bool = False) -> None:
        """Note a position of the journal. Redis has lost data when the newest noted entry is missing there."""

        def work(connection: sqlite3.Connection) -> None:
            rows = connection.execute("SELECT seen, newest FROM journal").fetchall()
            before, newest = rows[0] if rows else ("", "")
            newest = position if is_before(newest, position) else newest
            connection.execute(
                "INSERT OR REPLACE INTO journal VALUES (1, ?, ?)", (position if seen else before, newest)
            )

        await self._database.transact(work)

    async def _get_copy(self, tenant: str, id_: str) -> bytes | None:
        if self._copies is None:
            return None
        return (await asyncio.to_thread(self._copies.get, tenant, id_)).body

    async def _is_deleted_elsewhere(self, tenant: str, id_: str) -> bool:
        """Whether another gateway has deleted it; while the copies can't be asked, the own one counts."""
        if self._copies is None or not self._copies.reachable:
            return False
        try:
            return await asyncio.to_thread(self._copies.is_deleted, tenant, id_)
        except StoreError:
            return False

    async def _renew(self, tenant: str, id_: str, expires: float, copied: int) -> None:
        """Renew a record that is in use, and its copy."""
        now = self._clock()
        if self._ttl is not None and expires < now + self._ttl - RENEW_SECONDS:
            query = "UPDATE records SET expires = ? WHERE tenant = ? AND id = ?"
            await self._database.run(query, (self._expiry(), tenant, id_))
        if self._copies is not None and 0 < copied < now - RENEW_SECONDS:
            await self._database.run("UPDATE records SET copied = 0 WHERE tenant = ? AND id = ?", (tenant, id_))
            self._behind.set()
