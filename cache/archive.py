"""Stored conversations: sealed records on the gateway's own disk, with copies in the Redis that gateways share.

A record is on disk before it is acknowledged. Its copy is written immediately if Redis answers in time; otherwise the
record stays in an outbox (the rows not copied yet), so that an outage delays copies but loses none. A deleted record
leaves a tombstone at every gateway, which publishes the deletion again if Redis has lost it.
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
from cache.copies import Copies, Deletion, name
from cache.database import Database
from cache.documents import TOMBSTONE_SECONDS as DOCUMENT_TOMBSTONE_SECONDS
from cache.documents import Documents
from cache.errors import StoreError
from cache.keys import KeyRing
from cache.ledger import Ledger
from cache.quota import Quota
from cache.records import (
    BURY,
    CLAMP,
    IS_MEMBER,
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
from cache.replication import Replication
from cache.sealing import Sealer
from cache.snapshot import Snapshot

RENEW_SECONDS: Final = 86_400.0
"""Minimum age of a record's last renewal in seconds before a read renews it, so that not every turn writes."""
SWEEP_SECONDS: Final = 3_600.0
"""Seconds between two sweeps of expired records."""
TOMBSTONE_SECONDS: Final = 7 * 86_400.0
"""Default lifetime of a tombstone in seconds."""
log = structlog.get_logger("cache")


class Archive:
    """Records by tenant and id. All methods raise StoreError if the disk fails, and only then.

    One exception: if a record is not on this disk and the copies cannot be reached, it may exist at another gateway, so
    `get` raises StoreError instead of returning None.
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
        ledger: Ledger | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Open or create the database `path`.

        Records unused for `ttl` seconds expire (None: never), tombstones after `tombstone_ttl` seconds. If a tenant
        stores more than `tenant_bytes`, its oldest records are deleted. `copies` and `ledger` are shared with other
        gateways, and `blocks` is the store of KV blocks; the archive closes none of them. Records expire by `clock`;
        the default is an ElapsedClock that continues from one process to the next.

        Raises StoreError, or KeyMismatchError if the file was sealed under a key that is not among `keys`.
        """
        self._path = path
        self._keys = keys
        self._quota = Quota(tenant_bytes, tombstone=None if ledger is None else DOCUMENT_TOMBSTONE_SECONDS)
        self._database = Database(path, SCHEMA, prepare=self._prepare)
        self._sealer = Sealer(keys.derive("turns"))
        self._ttl = ttl
        self._tombstone_ttl = tombstone_ttl
        self.blocks = BlockDeletions(self._database, blocks)
        self.on_deletion: Callable[[str, str], Awaitable[None]] = self.bury
        """Called with tenant and id when another gateway has deleted a record; must call `bury`."""
        self._elapsed: ElapsedClock | None = None
        try:
            self._clock = clock or self._resume_clock(path.name)
        except BaseException:
            self._database.close()
            raise
        self._quota.clock = self._clock
        self.documents = Documents(self._database, keys, quota=self._quota, ttl=ttl, clock=self._clock, ledger=ledger)
        """The conversations that turns belong to."""
        self.documents.fetch_member = self.has
        self.replication = (
            None
            if copies is None
            else Replication(self._database, copies, clock=self._clock, on_deletion=self._apply_deletion)
        )

    async def put(self, tenant: str, id_: str, body: bytes, progress: Progress) -> bool:
        """Store a record and return True; return False if the stored record has already ended.

        The record is on disk when this returns, and normally copied too.
        """
        row = Row(tenant, id_, progress, self._sealer.seal(body, name(tenant, id_)))
        if not await self._database.run(PUT, (tenant, id_, progress, self._expiry(), row.sealed, 0)):
            return False
        await self._enforce_quota(tenant, id_)
        if self.replication is not None:
            await self.replication.copy(row)
        return True

    async def stored_bytes(self, tenant: str | None = None) -> dict[str, int]:
        """Return the bytes of records by tenant, of one or of all tenants that have stored any."""
        rows = await self._database.run("SELECT tenant, bytes FROM usage WHERE ?1 IS NULL OR tenant = ?1", (tenant,))
        return dict(rows)

    async def take_dropped(self, tenant: str) -> int:
        """Return how many records of a tenant the quota has deleted since the last call."""
        return await self._database.transact(lambda connection: self._quota.take_dropped(connection, tenant))

    async def get(self, tenant: str, id_: str) -> bytes | None:
        """Return a record of this tenant, or None if there is none or its key is no longer in the key ring.

        A record that cannot be read from a damaged file is read from the copies.
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
            return await self.adopt(tenant, id_)
        progress, sealed, expires, copied = rows[0]
        if progress == Progress.GONE or await self._is_expired(tenant, id_, expires):
            return None
        if await self._is_deleted_elsewhere(tenant, id_):
            await self.on_deletion(tenant, id_)
            return None
        await self._renew(tenant, id_, expires, copied)
        body = self._sealer.open(sealed, name(tenant, id_))
        return await self._get_copy(tenant, id_) if body is None else body

    async def has(self, tenant: str, id_: str) -> bool:
        """Return whether a record exists here, or its copy, which is then stored here if it belongs to a document."""
        query = "SELECT progress FROM records WHERE tenant = ? AND id = ?"
        rows = await self._database.run(query, (tenant, id_))
        if rows:
            return bool(rows[0][0] != Progress.GONE)
        try:
            return await self.adopt(tenant, id_) is not None
        except StoreError:  # the copies cannot be reached
            return False

    async def adopt(self, tenant: str, id_: str) -> bytes | None:
        """Return the copy of a record, and store it here if the record belongs to a document, so that both live on."""
        body = await self._get_copy(tenant, id_)
        if body is not None and await self._database.run(IS_MEMBER, (tenant, id_)):
            sealed = self._sealer.seal(body, name(tenant, id_))
            row = (tenant, id_, Progress.ENDED, self._expiry(), sealed, int(self._clock()))
            await self._database.run(PUT, row)
            with contextlib.suppress(StoreError):  # the next record reports what is crowded out
                await self._database.transact(lambda connection: self._quota.enforce(connection, tenant, id_))
        return body

    async def get_local(self, tenant: str, id_: str) -> bytes | None:
        """Return a record as stored on this disk, even if another gateway has deleted it."""
        query = "SELECT sealed FROM records WHERE tenant = ? AND id = ? AND progress < 3"
        rows = await self._database.run(query, (tenant, id_))
        return self._sealer.open(rows[0][0], name(tenant, id_)) if rows else None

    async def is_deleted(self, tenant: str, id_: str) -> bool:
        """Return whether a record was deleted here or, if the copies can be reached, at another gateway."""
        rows = await self._database.run("SELECT progress FROM records WHERE tenant = ? AND id = ?", (tenant, id_))
        if rows and rows[0][0] == Progress.GONE:
            return True
        return await self._is_deleted_elsewhere(tenant, id_)

    async def delete(self, tenant: str, id_: str, blocks: Sequence[bytes] = ()) -> bool:
        """Delete a record at all gateways and queue its KV `blocks` for deletion. Return False if there is none.

        Without copies no tombstone is needed: nothing could restore the record.
        """
        if await self.get(tenant, id_) is None:
            return False
        await self._bury(tenant, id_, blocks, copied=0)
        if self.replication is not None:
            await self.replication.copy(Row(tenant, id_, Progress.GONE, b""))
        return True

    async def bury(self, tenant: str, id_: str, blocks: Sequence[bytes] = ()) -> None:
        """Replace the local record by a tombstone, after another gateway has deleted it for all."""
        await self._bury(tenant, id_, blocks, copied=int(self._clock()))

    async def ids(self, tenant: str, *, limit: int) -> list[str]:
        """Return ids of the tenant's records, the newest first."""
        query = "SELECT id FROM records WHERE tenant = ? AND progress < 3 ORDER BY rowid DESC LIMIT ?"
        return [id_ for (id_,) in await self._database.run(query, (tenant, limit))]

    async def delete_blocks(self, blocks: Sequence[bytes]) -> None:
        """Queue KV blocks for deletion."""
        await self._database.transact(lambda connection: self.blocks.add(connection, blocks))

    def snapshot(self, tenant: str) -> Snapshot:
        """Return a reader of a tenant's documents and records, for use in another thread."""
        return Snapshot(self._path, tenant, documents=self.documents.sealer, records=self._sealer)

    async def running(self) -> list[tuple[str, str, bytes]]:
        """Return tenant, id and body of all records that have not ended. After a crash, these were in progress."""
        query = "SELECT tenant, id, progress, sealed FROM records WHERE progress = 0"
        rows = [Row(*row) for row in await self._database.run(query)]
        opened = [(row, self._sealer.open(row.sealed, name(row.tenant, row.id))) for row in rows]
        return [(row.tenant, row.id, body) for row, body in opened if body is not None]

    async def run(self) -> None:
        """Drain both outboxes, follow other gateways' deletions, and delete expired records, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_sweeps())
            tasks.create_task(self.blocks.run())
            if self.documents.exchange is not None:
                tasks.create_task(self.documents.exchange.run())
            if self.replication is not None:
                tasks.create_task(self.replication.run())

    async def sweep(self) -> None:
        """Delete expired records and those beyond the quota, and shrink the file."""
        if self._ttl is not None:  # records may have been stored while `ttl` was None
            while await self._database.run(CLAMP, (self._expiry(),)):
                continue
        while await self._database.run(SWEEP, (self._clock(), self._ttl is not None)):
            continue
        while await self._database.transact(self._quota.enforce_all):
            continue
        await self.documents.notify_crowded_out()
        await self.documents.sweep()
        if self.replication is not None:
            await self.replication.renew_members(self._clock() - self._tombstone_ttl / 2)
        if self._elapsed is not None:
            await self._database.run(SAVE_CLOCK, self._elapsed.read())
        await self._database.shrink()

    def close(self) -> None:
        """Close the file. The outbox stays in the file until the next start."""
        if self._elapsed is not None:
            with contextlib.suppress(StoreError):  # the last sweep has saved a reading
                self._database.run_now(SAVE_CLOCK, self._elapsed.read())
        self._database.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check the key of an opened file and count the bytes stored in it. Raises KeyMismatchError."""
        found = connection.execute("SELECT fingerprint FROM marks").fetchone()
        if self._keys.check(found[0] if found else None, str(self._path)):
            connection.execute("INSERT OR REPLACE INTO marks VALUES (1, ?)", (self._keys.fingerprints[0],))
        with contextlib.suppress(sqlite3.DatabaseError):  # a damaged file is served as far as it is readable
            self._quota.count(connection)

    def _resume_clock(self, name: str) -> ElapsedClock:
        """Return a clock that continues from the last process's reading.

        Files of older versions hold no reading; there the clock continues from the newest record.
        """
        last, ttl = None, self._ttl or self._tombstone_ttl
        with contextlib.suppress(StoreError):  # a damaged file is served as far as it is readable
            rows = self._database.run_now(READ_CLOCK) or self._database.run_now(NEWEST, (ttl, ttl))
            last = Reading(*rows[0]) if rows else None
        self._elapsed = ElapsedClock(last, longest=plausible_gap(ttl))
        if self._elapsed.jump:
            log.warning(
                "the system clock is far past the last use of the conversations: no conversation expires for that time",
                file=name,
                days=round(self._elapsed.jump / DAY, 1),
                advice="if the clock is wrong, set it (timedatectl) and restart; if it is right, do nothing",
            )
        with contextlib.suppress(StoreError):
            self._database.run_now(SAVE_CLOCK, self._elapsed.read())
        return self._elapsed

    async def _enforce_quota(self, tenant: str, newest: str) -> None:
        with contextlib.suppress(StoreError):  # the file is damaged; the record itself is on disk
            await self._database.transact(lambda connection: self._quota.enforce(connection, tenant, newest))
            await self.documents.notify_crowded_out()

    async def _is_expired(self, tenant: str, id_: str, expires: float) -> bool:
        """Return whether a record has expired. The turns of a conversation expire with it."""
        if self._ttl is None or expires >= self._clock():
            return False
        return not await self._database.run(IS_MEMBER, (tenant, id_))

    def _expiry(self) -> float:
        return NEVER if self._ttl is None else self._clock() + self._ttl

    async def _run_sweeps(self) -> None:
        while True:
            with contextlib.suppress(StoreError):  # the disk failed; the next round retries
                await self.sweep()
            await asyncio.sleep(SWEEP_SECONDS)

    async def _bury(self, tenant: str, id_: str, blocks: Sequence[bytes], *, copied: int) -> None:
        """Replace the record by a tombstone, or without copies delete it; add `blocks` to the outbox."""

        def work(connection: sqlite3.Connection) -> None:
            if self.replication is None:
                connection.execute("DELETE FROM records WHERE tenant = ? AND id = ?", (tenant, id_))
            else:
                connection.execute(BURY, (tenant, id_, copied, self._clock() + self._tombstone_ttl))
            self.blocks.add(connection, blocks)

        await self._database.transact(work)

    async def _apply_deletion(self, deletion: Deletion) -> None:
        """Delete a record that another gateway has deleted.

        Nothing is done if the local record is already deleted, or if there is none and the deletion is older than a
        tombstone's lifetime.
        """
        query = "SELECT progress FROM records WHERE tenant = ? AND id = ?"
        rows = await self._database.run(query, (deletion.tenant, deletion.id))
        fresh = deletion.at + self._tombstone_ttl > self._clock()
        if not (rows[0][0] < Progress.GONE if rows else fresh):
            return
        try:
            await self.on_deletion(deletion.tenant, deletion.id)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - the record is deleted even if its KV blocks are unknown
            log.error("KV blocks of a deleted response are unknown; they expire after cache_ttl", reason=repr(error))
            await self.bury(deletion.tenant, deletion.id)

    async def _get_copy(self, tenant: str, id_: str) -> bytes | None:
        return None if self.replication is None else await self.replication.get(tenant, id_)

    async def _is_deleted_elsewhere(self, tenant: str, id_: str) -> bool:
        return self.replication is not None and await self.replication.is_deleted(tenant, id_)

    async def _renew(self, tenant: str, id_: str, expires: float, copied: int) -> None:
        """Extend the lifetime of a record that is in use, and of its copy."""
        now = self._clock()
        if self._ttl is not None and expires < now + self._ttl - RENEW_SECONDS:
            query = "UPDATE records SET expires = ? WHERE tenant = ? AND id = ?"
            await self._database.run(query, (self._expiry(), tenant, id_))
        if self.replication is not None and 0 < copied < now - RENEW_SECONDS:
            await self.replication.renew(tenant, id_)
