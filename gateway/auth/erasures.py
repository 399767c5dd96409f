"""Users whose data has to be erased. Each gateway erases what it holds, also one that is started later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cache import Database, Ledger, StoreError

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS erasures (
    tenant TEXT PRIMARY KEY, asked_at INTEGER NOT NULL, done INTEGER NOT NULL, shared INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""
TABLE: Final = "erased"
"""Table in the ledger with the tenants whose data is to be erased at all gateways."""
USE: Final = "use"
"""Table of usage by gateway and user in the ledger."""
USE_DAYS: Final = "use_days"
"""Table of daily usage by gateway and user in the ledger."""
_ADD: Final = "INSERT OR IGNORE INTO erasures VALUES (?, ?, 0, ?)"
_FORGET_USE: Final = """
UPDATE users SET last_used = NULL, requests = 0, tokens = 0, day = '', requests_today = 0, tokens_today = 0
WHERE tenant = ?
"""
_FORGET_DAYS: Final = "DELETE FROM usage_days WHERE tenant = ?"


class Erasures:
    """The erasures in users.db. All methods raise StoreError if the disk fails."""

    def __init__(self, database: Database, ledger: Ledger | None, clock: Callable[[], float]) -> None:
        """Store erasures in `database`, and share them with other gateways through `ledger`."""
        self._database = database
        self._ledger = ledger
        self._clock = clock
        self._revision: int | None = None

    async def ask(self, tenant: str) -> None:
        """Record that the data of a tenant has to be erased, and erase its usage."""
        await self._database.run(_ADD, (tenant, int(self._clock()), 0))
        await self._forget_use(tenant)
        await self.share()

    async def tenants(self) -> set[str]:
        """Return all tenants that were erased, or are to be."""
        return {tenant for (tenant,) in await self._database.run("SELECT tenant FROM erasures")}

    async def pending(self) -> list[str]:
        """Return the tenants whose data has to be erased here."""
        return [tenant for (tenant,) in await self._database.run("SELECT tenant FROM erasures WHERE done = 0")]

    async def finish(self, tenant: str, *, use: str) -> None:
        """Record that the data of a tenant is erased here; `use` names its usage at this gateway in the ledger."""
        await self._forget_use(tenant)
        if self._ledger is not None:
            for table in (USE, USE_DAYS):
                await self._ledger.drop(table, [use])
        await self._database.run("UPDATE erasures SET done = 1 WHERE tenant = ?", (tenant,))

    async def _forget_use(self, tenant: str) -> None:
        for statement in (_FORGET_USE, _FORGET_DAYS):
            await self._database.run(statement, (tenant,))

    async def share(self) -> bool:
        """Exchange erasures with other gateways; return False while the ledger is unavailable."""
        if self._ledger is None:
            return True
        try:
            revision = await self._ledger.revision(TABLE)
            if revision is None:  # the ledger is new or has lost its data
                await self._database.run("UPDATE erasures SET shared = 0")
            elif revision != self._revision:
                for tenant in await self._ledger.read(TABLE):
                    await self._database.run(_ADD, (tenant.decode(), int(self._clock()), 1))
                self._revision = revision
            rows = await self._database.run("SELECT tenant FROM erasures WHERE shared = 0")
            if rows:
                await self._ledger.write(TABLE, {tenant: tenant.encode() for (tenant,) in rows})
                await self._database.run("UPDATE erasures SET shared = 1")
        except StoreError:
            return False
        return True
