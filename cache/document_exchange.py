"""Exchange of documents between gateways that share a Redis.

Each tenant has a table there, in which every document has its newest published state, and a log names the documents
that changed, so that gateways follow it within a second. The files of the gateways are authoritative: a table that
Redis has lost is filled again. Its random epoch distinguishes a lost table, whose documents are published again, from
one in which a document is missing because its tombstone has expired. That is believed only of documents that were
published before any living tombstone: a Redis that failed over may lack the newest writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
import structlog

from cache import document_tables as tables
from cache.database import Database
from cache.errors import StoreError
from cache.ledger import Ledger
from cache.sealing import Sealer

TABLE: Final = "conversations"
LOG: Final = "conversation-changes"
ENTRIES: Final = 1 << 14
"""Minimum length of the log. A gateway that missed more entries compares whole tables."""
BATCH: Final = 64
"""Documents published, and entries of the log read, at a time."""
FOLLOW_SECONDS: Final = 1.0
"""Seconds between two reads of the log."""
_EPOCH: Final = ""
"""Name of the record with a table's epoch; documents have longer names."""
log = structlog.get_logger("cache")


class Shared(msgspec.Struct, frozen=True, array_like=True):
    """The state of a document, as gateways exchange it."""

    id: str
    gone: bool
    body: bytes


class _Changed(msgspec.Struct, frozen=True, array_like=True):
    """An entry of the log."""

    gateway: str
    tenant: str
    id: str


class DocumentExchange:
    """One gateway's side of the exchange. While Redis is unavailable, changes wait in the database."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        sealer: Sealer,
        receive: Callable[[str, Shared], Awaitable[None]],
        *,
        tombstone_seconds: float,
    ) -> None:
        """Publish the documents of `database`, sealed by `sealer`; `receive` applies those of other gateways.

        Tombstones live for `tombstone_seconds`.
        """
        self._tombstone_seconds = tombstone_seconds
        self._database = database
        self._ledger = ledger
        self._sealer = sealer
        self._receive = receive
        self._gateway = secrets.token_hex(8)
        self._compared: set[str] = set()
        """Tenants whose table was compared with the database; the log reports later changes."""
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._seen: str | None = None
        """Position in the log; None before its first read."""

    async def publish(self, tenant: str) -> None:
        """Publish the tenant's changed documents; if Redis is unavailable, `run` does it later."""
        with contextlib.suppress(StoreError):
            await self._publish(tenant)

    async def refresh(self, tenant: str, id_: str) -> None:
        """Fetch the newest state of one document, unless Redis is unavailable."""
        if not self._ledger.reachable:
            return
        with contextlib.suppress(StoreError):
            await self._fetch(tenant, id_)

    async def compare(self, tenant: str) -> None:
        """Exchange all documents of a tenant, once per process, unless Redis is unavailable."""
        if tenant not in self._compared and self._ledger.reachable:
            with contextlib.suppress(StoreError):
                await self._compare(tenant)

    async def drop(self, tenant: str, id_: str) -> bool:
        """Delete an expired tombstone from the table; return False if Redis is unavailable."""
        try:
            await self._ledger.drop(self._table(tenant), [id_])
        except StoreError:
            return False
        return True

    async def drop_tenant(self, tenant: str) -> None:
        """Delete all published documents of a tenant. Raises StoreError if Redis is unavailable."""
        await self._ledger.drop_table(self._table(tenant))

    async def run(self) -> None:
        """Publish what waits in the database and follow other gateways' changes, until cancelled."""
        while True:
            with contextlib.suppress(StoreError):
                await self._follow()
                for (tenant,) in await self._database.run(tables.WAITING):
                    await self._publish(tenant)
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _follow(self) -> None:
        end = await self._ledger.newest(LOG)
        if self._seen is None or (self._seen and not await self._ledger.has(LOG, self._seen)):
            self._seen = end
            for tenant in list(self._compared):  # entries were missed
                await self._compare(tenant)
            return
        while self._seen != end:
            entries = await self._ledger.entries(LOG, self._seen, most=BATCH)
            if not entries:
                return
            for _, entry in entries:
                if entry is not None:
                    await self._apply(msgspec.msgpack.decode(entry, type=_Changed))
            self._seen = entries[-1][0]

    async def _apply(self, changed: _Changed) -> None:
        if changed.gateway == self._gateway:
            return
        if changed.tenant in self._compared:
            await self._fetch(changed.tenant, changed.id)
        else:
            await self._compare(changed.tenant)

    async def _fetch(self, tenant: str, id_: str) -> None:
        async with self._lock(tenant):
            record = await self._ledger.read_one(self._table(tenant), id_)
            if record is not None:
                await self._receive(tenant, msgspec.msgpack.decode(record, type=Shared))

    async def _compare(self, tenant: str) -> None:
        """Apply the tenant's table, and publish or delete what it lacks. Raises StoreError."""
        async with self._lock(tenant):  # a change in between would look like one that the table has lost
            records = (msgspec.msgpack.decode(record, type=Shared) for record in await self._read(tenant))
            theirs = {shared.id: shared for shared in records}
            is_lost = await self._check_epoch(tenant, theirs.pop(_EPOCH, None))
            for shared in theirs.values():
                await self._receive(tenant, shared)
            await self._settle_missing(tenant, theirs, is_lost=is_lost)
            self._compared.add(tenant)
            await self._send(tenant)

    async def _read(self, tenant: str) -> list[bytes]:
        return await self._ledger.read(self._table(tenant))

    async def _check_epoch(self, tenant: str, found: Shared | None) -> bool:
        """Return whether the table is another than the one with which the database was last compared."""
        rows = await self._database.run("SELECT epoch FROM document_epochs WHERE tenant = ?", (tenant,))
        if found is not None and rows and rows[0][0] == found.body.decode():
            return False
        epoch = secrets.token_hex(8) if found is None else found.body.decode()
        if found is None:
            await self._write(tenant, {_EPOCH: Shared(_EPOCH, False, epoch.encode())})
        await self._database.run(tables.SET_EPOCH, (tenant, epoch))
        return True

    async def _settle_missing(self, tenant: str, theirs: Mapping[str, Shared], *, is_lost: bool) -> None:
        """Publish documents that the table lacks again if it `is_lost`; else others have deleted them long ago."""
        for id_, gone, copied in await self._database.run(tables.ALL, (tenant,)):
            if id_ in theirs:
                continue
            if is_lost:
                await self._database.run("UPDATE documents SET copied = 0 WHERE tenant = ? AND id = ?", (tenant, id_))
            elif 0 < copied < time.time() - self._tombstone_seconds and not gone:
                await self._receive(tenant, Shared(id_, True, b""))

    async def _publish(self, tenant: str) -> None:
        if tenant not in self._compared:
            await self._compare(tenant)
            return
        async with self._lock(tenant):
            await self._send(tenant)

    async def _send(self, tenant: str) -> None:
        while rows := await self._database.run(tables.OUTBOX, (tenant, BATCH)):
            records = {}
            for id_, gone, sealed in rows:
                body = b"" if gone else self._sealer.open(sealed, f"document\0{tenant}\0{id_}".encode())
                if body is not None:
                    records[id_] = Shared(id_, bool(gone), body)
            await self._write(tenant, records)
            for id_, gone, sealed in rows:
                await self._ledger.append(
                    LOG, msgspec.msgpack.encode(_Changed(self._gateway, tenant, id_)), most=ENTRIES
                )
                await self._database.run(tables.COPIED, (int(time.time()), tenant, id_, gone, sealed))

    async def _write(self, tenant: str, records: Mapping[str, Shared]) -> None:
        encoded = {name: msgspec.msgpack.encode(shared) for name, shared in records.items()}
        await self._ledger.write(self._table(tenant), encoded)

    def _lock(self, tenant: str) -> asyncio.Lock:
        lock = self._locks.get(tenant)
        if lock is None:
            lock = self._locks[tenant] = asyncio.Lock()
        return lock

    def _table(self, tenant: str) -> str:
        return self._ledger.private_table(TABLE, tenant)
