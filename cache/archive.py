"""Conversations at rest: sealed records, on disk when they are acknowledged, and copied to where other gateways look.

A copy is made at once when that store answers in time, and from an outbox (the rows that are not copied yet) when it
does not: an outage delays copies and loses none. Where copies lie, neither tenants nor response ids can be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from cache.clock import DAY, ElapsedClock, Reading, plausible_gap
from cache.database import Database
from cache.errors import StoreError
from cache.guarded import Guarded
from cache.keys import KeyRing
from cache.sealing import Sealer

BATCH: Final = 16
"""Records that leave the outbox in one go."""
RENEW_SECONDS: Final = 86_400.0
"""A record that is read is renewed when its last renewal is so long ago: not at every turn."""
SWEEP_SECONDS: Final = 3_600.0
RETRY_SECONDS: Final = 1.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS records (
    tenant TEXT NOT NULL, id TEXT NOT NULL, progress INTEGER NOT NULL, copied INTEGER NOT NULL, expires REAL NOT NULL,
    sealed BLOB NOT NULL, PRIMARY KEY (tenant, id)
) STRICT;
CREATE INDEX IF NOT EXISTS by_expiry ON records (expires);
CREATE INDEX IF NOT EXISTS outbox ON records (progress) WHERE copied = 0;
CREATE TABLE IF NOT EXISTS marks (only INTEGER PRIMARY KEY CHECK (only = 1), fingerprint TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS clock (only INTEGER PRIMARY KEY CHECK (only = 1), wall REAL NOT NULL, elapsed REAL NOT NULL)
STRICT;
"""
_PUT: Final = """
INSERT INTO records VALUES (?, ?, ?, 0, ?, ?) ON CONFLICT DO UPDATE
SET progress = excluded.progress, copied = 0, expires = excluded.expires, sealed = excluded.sealed
WHERE records.progress < 2 RETURNING id
"""
_GO: Final = """
INSERT INTO records VALUES (?, ?, 3, 0, ?, x'') ON CONFLICT DO UPDATE
SET progress = 3, copied = 0, expires = excluded.expires, sealed = x''
"""
_SWEEP: Final = """
DELETE FROM records WHERE rowid IN (SELECT rowid FROM records WHERE expires < ? LIMIT 100) RETURNING 1
"""
_READ_CLOCK: Final = "SELECT wall, elapsed FROM clock"
_NEWEST: Final = "SELECT max(expires) - ?, max(expires) - ? FROM records HAVING count(*) > 0"
_SAVE_CLOCK: Final = "INSERT OR REPLACE INTO clock VALUES (1, ?, ?)"

log = structlog.get_logger("cache")


class Progress(IntEnum):
    """How far what a record tells of has come."""

    RUNNING = 0
    INTERRUPTED = 1
    """Its gateway was taken for dead; if that was wrong, it may still end."""
    ENDED = 2
    """Never written again."""
    GONE = 3
    """Deleted, and the other gateways have still to be told."""


class _Row(NamedTuple):
    tenant: str
    id: str
    progress: int
    sealed: bytes


class Archive:
    """Records by tenant and id. All methods raise StoreError when the disk fails, and only then.

    One exception: a record that is not on this disk while the copies can't be asked may exist elsewhere, so `get` and
    `delete` raise rather than deny it.
    """

    def __init__(
        self,
        path: Path,
        keys: KeyRing,
        *,
        ttl: float,
        copies: Guarded | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Open or create `path`; records unused for `ttl` seconds go. `copies`, which other gateways share, stays open.

        Records expire by `clock`; without one, by an ElapsedClock that continues from process to process.

        Raises StoreError, or KeyMismatchError when it was sealed under a key that is not among `keys`.
        """
        self._database = Database(path, _SCHEMA)
        self._sealer = Sealer(keys.derive("turns"))
        self._id_keys = keys.derive("turn ids")
        self._ttl = ttl
        self._copies = copies
        self._elapsed: ElapsedClock | None = None
        self._behind = asyncio.Event()
        self._behind.set()  # an earlier process may have left something in the outbox
        try:
            found = self._database.run_now("SELECT fingerprint FROM marks")
            if keys.check(found[0][0] if found else None, str(path)):
                self._database.run_now("INSERT OR REPLACE INTO marks VALUES (1, ?)", (keys.fingerprints[0],))
            self._clock = clock or self._resume_clock(path.name)
        except BaseException:
            self._database.close()
            raise

    async def put(self, tenant: str, id_: str, body: bytes, progress: Progress) -> bool:
        """Write a record; False when one is there that has ended. On disk, and mostly copied, when this returns."""
        row = _Row(tenant, id_, progress, self._sealer.seal(body, _name(tenant, id_)))
        if not await self._database.run(_PUT, (tenant, id_, progress, self._clock() + self._ttl, row.sealed)):
            return False
        await self._copy_now(row)
        return True

    async def get(self, tenant: str, id_: str) -> bytes | None:
        """A record of this tenant's; None when there is none, or it was sealed under a key that is gone.

        What cannot be read here, from a damaged file, is looked for among the copies.
        """
        query = "SELECT progress, sealed, expires FROM records WHERE tenant = ? AND id = ?"
        try:
            rows = await self._database.run(query, (tenant, id_))
        except StoreError:
            copy = await self._get_copy(tenant, id_)
            if copy is None:
                raise
            return copy
        if not rows:
            return await self._get_copy(tenant, id_)
        progress, sealed, expires = rows[0]
        if progress == Progress.GONE or expires < self._clock():
            return None
        if await self._deleted_elsewhere(tenant, id_):
            await self._database.run("DELETE FROM records WHERE tenant = ? AND id = ?", (tenant, id_))
            return None
        if expires < self._clock() + self._ttl - RENEW_SECONDS:
            await self._renew(tenant, id_)
        body = self._sealer.open(sealed, _name(tenant, id_))
        return await self._get_copy(tenant, id_) if body is None else body

    async def delete(self, tenant: str, id_: str) -> bool:
        """Delete a record everywhere; False when there is none."""
        if await self.get(tenant, id_) is None:
            return False
        if self._copies is None:
            await self._database.run("DELETE FROM records WHERE tenant = ? AND id = ?", (tenant, id_))
        else:
            await self._database.run(_GO, (tenant, id_, self._clock() + self._ttl))
            await self._copy_now(_Row(tenant, id_, Progress.GONE, b""))
        return True

    async def running(self) -> list[tuple[str, str, bytes]]:
        """Tenant, id and body of all records that have not ended: after a crash, what was under way."""
        query = "SELECT tenant, id, progress, sealed FROM records WHERE progress = 0"
        rows = [_Row(*row) for row in await self._database.run(query)]
        opened = [(row, self._sealer.open(row.sealed, _name(row.tenant, row.id))) for row in rows]
        return [(row.tenant, row.id, body) for row, body in opened if body is not None]

    async def keep(self) -> None:
        """Empty the outbox whenever there is something in it, and drop what is past its time. Runs until cancelled."""
        while True:
            with contextlib.suppress(StoreError):  # of the disk; it is tried again
                await self.sweep()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drain(), SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Drop what is past its time."""
        while await self._database.run(_SWEEP, (self._clock(),)):
            continue
        if self._elapsed is not None:
            await self._database.run(_SAVE_CLOCK, self._elapsed.read())
        await self._database.shrink()

    def close(self) -> None:
        """Close the file; the outbox waits in it for the next start."""
        if self._elapsed is not None:
            with contextlib.suppress(StoreError):  # the reading of the last sweep is there
                self._database.run_now(_SAVE_CLOCK, self._elapsed.read())
        self._database.close()

    def _resume_clock(self, name: str) -> ElapsedClock:
        """Return the clock that continues from the last process's, or from the newest record of an older version."""
        last = None
        with contextlib.suppress(StoreError):  # of a damaged file, which is served as far as it can be read
            rows = self._database.run_now(_READ_CLOCK) or self._database.run_now(_NEWEST, (self._ttl, self._ttl))
            last = Reading(*rows[0]) if rows else None
        self._elapsed = ElapsedClock(last, longest=plausible_gap(self._ttl))
        if self._elapsed.jump:
            log.warning(
                "the system clock is far past the last use of the conversations: no conversation expires for that time",
                file=name,
                days=round(self._elapsed.jump / DAY, 1),
                advice="if the clock is wrong, set it (timedatectl) and restart; if it is right, nothing is to be done",
            )
        with contextlib.suppress(StoreError):
            self._database.run_now(_SAVE_CLOCK, self._elapsed.read())
        return self._elapsed

    async def _drain(self) -> None:
        query = "SELECT tenant, id, progress, sealed FROM records WHERE copied = 0 AND progress > 0 LIMIT ?"
        while True:
            await self._behind.wait()
            if self._copies is None:
                await asyncio.sleep(SWEEP_SECONDS)
                continue
            try:
                rows = [_Row(*row) for row in await self._database.run(query, (BATCH,))]
                if not rows:
                    self._behind.clear()
                for row in rows:
                    await self._copy(row)
            except StoreError:
                await asyncio.sleep(RETRY_SECONDS)

    async def _copy_now(self, row: _Row) -> None:
        if self._copies is None or row.progress == Progress.RUNNING:
            return
        try:
            await self._copy(row)
        except StoreError:
            self._behind.set()

    async def _copy(self, row: _Row) -> None:
        """Take one record out of the outbox. Raises StoreError when it has to stay."""
        await asyncio.to_thread(self._send, row)
        # Unless it was written anew meanwhile.
        where = "tenant = ? AND id = ? AND progress = ?"
        done = "DELETE FROM records" if row.progress == Progress.GONE else "UPDATE records SET copied = 1"
        await self._database.run(f"{done} WHERE {where}", (row.tenant, row.id, row.progress))

    def _send(self, row: _Row) -> None:
        assert self._copies is not None  # noqa: S101
        copies, tombstones = self._ids("copy", row.tenant, row.id), self._ids("gone", row.tenant, row.id)
        if row.progress == Progress.GONE:
            self._copies.put_many([(tombstones[0], self._sealer.seal(b"", _tombstone(row.tenant, row.id)))])
            self._copies.delete(copies)
        elif not self._is_gone(row.tenant, row.id, self._copies.get_many(tombstones)):
            self._copies.put_many([(copies[0], row.sealed)])

    async def _get_copy(self, tenant: str, id_: str) -> bytes | None:
        if self._copies is None:
            return None
        copies, tombstones = self._ids("copy", tenant, id_), self._ids("gone", tenant, id_)
        found = await asyncio.to_thread(self._copies.get_many, [*copies, *tombstones])
        if self._is_gone(tenant, id_, found[len(copies) :]):
            return None
        opened = (self._sealer.open(value, _name(tenant, id_)) for value in found if value is not None)
        return next((body for body in opened if body is not None), None)

    async def _deleted_elsewhere(self, tenant: str, id_: str) -> bool:
        """Whether another gateway has deleted it; while the copies can't be asked, the own one counts."""
        if self._copies is None or not self._copies.reachable:
            return False
        try:
            found = await asyncio.to_thread(self._copies.get_many, self._ids("gone", tenant, id_))
        except StoreError:
            return False
        return self._is_gone(tenant, id_, found)

    def _is_gone(self, tenant: str, id_: str, found: Sequence[bytes | None]) -> bool:
        """Whether one of these is a tombstone that a gateway set: who can write to the copies may not delete by one."""
        name = _tombstone(tenant, id_)
        return any(value is not None and self._sealer.open(value, name) is not None for value in found)

    async def _renew(self, tenant: str, id_: str) -> None:
        query = "UPDATE records SET expires = ?, copied = 0 WHERE tenant = ? AND id = ?"  # the copy is renewed, too
        await self._database.run(query, (self._clock() + self._ttl, tenant, id_))
        self._behind.set()

    def _ids(self, kind: str, tenant: str, id_: str) -> list[bytes]:
        """What a record's copy or tombstone is called, under the newest key and the older ones."""
        name = kind.encode() + b"\0" + _name(tenant, id_)
        return [hmac.digest(key, name, "sha256") for key in self._id_keys]


def _tombstone(tenant: str, id_: str) -> bytes:
    """What a tombstone is sealed as: no record's seal will do."""
    return b"gone\0" + _name(tenant, id_)


def _name(tenant: str, id_: str) -> bytes:
    return f"{tenant}\0{id_}".encode()
