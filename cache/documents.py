"""Documents: sealed records that change, by tenant and id, such as conversations. They have turns as members.

A change is on disk before it is acknowledged. With Redis it is then published (`cache/document_exchange.py`), and
changes that several gateways made to one document are merged. A deleted document leaves a tombstone, which nothing
that was made before replaces.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from cache import document_tables as tables
from cache.database import Database
from cache.document_exchange import DocumentExchange, Shared
from cache.keys import KeyRing
from cache.ledger import Ledger
from cache.quota import Quota
from cache.records import NEVER
from cache.sealing import Sealer

TOMBSTONE_SECONDS: Final = 180 * 86_400.0
"""Lifetime of a tombstone in seconds: longer than any device or gateway is expected to be switched off."""
_FIRST: Final = (-1, "")
_LAST: Final = (1 << 62, "")


class Edit(NamedTuple):
    """The new state of a document."""

    body: bytes
    updated: int
    """Time of the last change in milliseconds since the epoch, by which documents are listed."""
    members: Sequence[tuple[str, bool]] = ()
    """Turns that belong to the document from now on, each with whether it is redundant."""


Change = Callable[[bytes | None], Edit | None]
"""Returns the new state of a document, given the stored one (None: it does not exist), or None to change nothing."""


class DocumentGoneError(Exception):
    """The document was deleted."""


class Documents:
    """The documents in one database. All methods raise StoreError if the disk fails, and only then."""

    def __init__(
        self,
        database: Database,
        keys: KeyRing,
        *,
        quota: Quota,
        ttl: float | None,
        clock: Callable[[], float],
        ledger: Ledger | None,
    ) -> None:
        """Store documents in `database`, within `quota`; those unchanged for `ttl` seconds by `clock` expire.

        `ledger` is shared with other gateways; None for a single gateway.
        """
        self._database = database
        self.sealer = Sealer(keys.derive("documents"))
        self._quota = quota
        self._ttl = ttl
        self._clock = clock
        self.merge: Callable[[bytes | None, bytes], Edit] = _newest
        """Merges the stored state of a document with that of another gateway; both arguments are bodies."""
        self.on_change: Callable[[str, str, bool], Awaitable[None]] = _ignore
        """Called with tenant, id and whether the document is gone after each change, here or at another gateway."""
        self.fetch_member: Callable[[str, str], Awaitable[bool]] = _fetch_nothing
        """Stores a turn of another gateway's document here, given tenant and id, if its copy is found."""
        self.exchange = (
            None
            if ledger is None
            else (DocumentExchange(database, ledger, self.sealer, self._receive, tombstone_seconds=TOMBSTONE_SECONDS))
        )

    async def edit(self, tenant: str, id_: str, change: Change) -> bytes | None:
        """Change a document, or create it, and return its body; None if `change` returned None.

        `change` runs in the database's thread, in one transaction. Raises DocumentGoneError if the document was
        deleted.
        """
        body, changed = await self._edit(tenant, id_, change)
        if changed:
            await self._announce(tenant, id_)
        return body

    async def get(self, tenant: str, id_: str, *, refresh: bool = True) -> bytes | None:
        """Return a document, or None if there is none; unless `refresh` is False, as other gateways have changed it."""
        if self.exchange is not None and refresh:
            await self.exchange.refresh(tenant, id_)
        rows = await self._database.run(tables.GET, (tenant, id_))
        return self._opened(tenant, id_, rows[0]) if rows else None

    async def page(
        self, tenant: str, *, limit: int, after: str | None = None, newest_first: bool = True
    ) -> list[bytes] | None:
        """Return up to `limit` documents by their last change, after the document `after`; None if there is no such."""
        if self.exchange is not None:
            await self.exchange.compare(tenant)
        start = _LAST if newest_first else _FIRST
        if after is not None:
            rows = await self._database.run(tables.GET, (tenant, after))
            if not rows or rows[0][0]:
                return None
            start = (rows[0][1], after)
        query = tables.NEWEST_FIRST if newest_first else tables.OLDEST_FIRST
        rows = await self._database.run(query, (tenant, *start, limit))
        opened = (self.sealer.open(sealed, seal_name(tenant, id_)) for id_, sealed in rows)
        return [body for body in opened if body is not None]

    async def delete(self, tenant: str, id_: str) -> list[str] | None:
        """Delete a document at all gateways; return its turns, which the caller deletes, or None if there is none."""
        if await self.get(tenant, id_) is None:
            return None
        await self._bury(tenant, id_, copied=0)
        await self._announce(tenant, id_, gone=True)
        query = "SELECT turn FROM members WHERE tenant = ? AND document = ?"
        return [turn for (turn,) in await self._database.run(query, (tenant, id_))]

    async def orphans(self, limit: int) -> list[tuple[str, str]]:
        """Return tenant and id of turns whose document is gone, and which therefore have to be deleted."""
        return [(tenant, turn) for tenant, turn in await self._database.run(tables.ORPHANS, (limit,))]

    async def release(self, tenant: str, turn: str) -> None:
        """Remove a deleted turn from its document."""
        await self._database.run("DELETE FROM members WHERE tenant = ? AND turn = ?", (tenant, turn))

    async def forget_tenant(self, tenant: str) -> None:
        """Delete what is published of a tenant. Raises StoreError while Redis is unavailable, too."""
        if self.exchange is not None:
            await self.exchange.drop_tenant(tenant)

    async def sweep(self) -> None:
        """Delete expired documents and tombstones."""
        while rows := await self._database.run(tables.EXPIRED, (self._clock(), self._ttl is not None)):
            for tenant, id_, gone in rows:
                if not gone:
                    await self.delete(tenant, id_)
                    continue
                if self.exchange is not None and not await self.exchange.drop(tenant, id_):
                    return  # the next sweep retries
                await self._database.run(tables.REMOVE, (tenant, id_))

    async def notify_crowded_out(self) -> None:
        """Report and publish the documents that the quota has deleted."""
        for tenant, id_ in self._quota.take_crowded_out():
            await self._announce(tenant, id_, gone=True)

    async def _edit(self, tenant: str, id_: str, change: Change, *, copied: int = 0) -> tuple[bytes | None, bool]:
        """Return the body after the change, and whether it is another than before."""

        def work(connection: sqlite3.Connection) -> tuple[bytes | None, bool]:
            row = connection.execute(tables.GET, (tenant, id_)).fetchone()
            if row is not None and row[0]:
                raise DocumentGoneError
            before = None if row is None else self._opened(tenant, id_, row)
            edit = change(before)
            if edit is None or edit.body == before:
                return before if edit is not None else None, False
            sealed = self.sealer.seal(edit.body, seal_name(tenant, id_))
            done = 1 if self.exchange is None else copied
            connection.execute(tables.PUT, (tenant, id_, edit.updated, done, self._expiry(), sealed))
            members = ((tenant, turn, id_, redundant) for turn, redundant in edit.members)
            connection.executemany(tables.ADD_MEMBER, members)
            self._quota.limit_documents(connection, tenant)
            self._quota.enforce(connection, tenant)
            return edit.body, True

        return await self._database.transact(work)

    async def _receive(self, tenant: str, shared: Shared) -> None:
        """Apply the state of a document at another gateway."""
        id_ = shared.id
        if shared.gone:
            rows = await self._database.run(tables.GET, (tenant, id_))
            await self._bury(tenant, id_, copied=1)
            if rows and not rows[0][0]:
                await self.on_change(tenant, id_, True)
            return
        merged = Edit(b"", 0)

        def change(before: bytes | None) -> Edit:
            nonlocal merged
            merged = self.merge(before, shared.body)
            return merged

        try:
            _, changed = await self._edit(tenant, id_, change, copied=int(time.time()))
        except DocumentGoneError:  # the other gateway does not know of the deletion
            await self._database.run("UPDATE documents SET copied = 0 WHERE tenant = ? AND id = ?", (tenant, id_))
            return
        if merged.body != shared.body:  # both gateways have changed it
            await self._database.run("UPDATE documents SET copied = 0 WHERE tenant = ? AND id = ?", (tenant, id_))
        if changed:
            for turn, is_redundant in merged.members:
                if not is_redundant:
                    await self.fetch_member(tenant, turn)
            await self.on_change(tenant, id_, False)

    async def _announce(self, tenant: str, id_: str, *, gone: bool = False) -> None:
        if self.exchange is not None:
            await self.exchange.publish(tenant)
        await self.on_change(tenant, id_, gone)
        if not gone:
            await self.notify_crowded_out()

    async def _bury(self, tenant: str, id_: str, *, copied: int) -> None:
        """Replace a document by a tombstone."""
        now = self._clock()
        parameters = (tenant, id_, int(now * 1000), copied if self.exchange else 1, now + TOMBSTONE_SECONDS)
        await self._database.run(tables.BURY, parameters)

    def _expiry(self) -> float:
        return NEVER if self._ttl is None else self._clock() + self._ttl

    def _opened(self, tenant: str, id_: str, row: tuple[int, int, int, float, bytes]) -> bytes | None:
        return None if row[0] else self.sealer.open(row[4], seal_name(tenant, id_))


def seal_name(tenant: str, id_: str) -> bytes:
    """Return the name that a document is sealed under."""
    return f"document\0{tenant}\0{id_}".encode()


def _newest(_: bytes | None, theirs: bytes) -> Edit:
    return Edit(theirs, 0)


async def _ignore(_tenant: str, _id: str, _gone: bool) -> None:
    """Report the change to nobody."""


async def _fetch_nothing(_tenant: str, _turn: str) -> bool:
    """Find no copy."""
    return False
