"""What stored conversations may take: one user's, and the whole file's. The oldest turns go first."""

from __future__ import annotations

import sqlite3
from typing import Final

from cache.database import transaction

FULL_TENANTS: Final = 64
"""The file holds what so many users may store at most."""
STRIDE: Final = 64
"""Turns that one call drops at most: other turns wait for the database meanwhile."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS usage (tenant TEXT PRIMARY KEY, bytes INTEGER NOT NULL, dropped INTEGER NOT NULL)
STRICT, WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS usage_insert AFTER INSERT ON records BEGIN
    INSERT INTO usage VALUES (new.tenant, length(new.sealed), 0)
    ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER IF NOT EXISTS usage_update AFTER UPDATE OF sealed ON records BEGIN
    UPDATE usage SET bytes = bytes + length(new.sealed) - length(old.sealed) WHERE tenant = new.tenant;
END;
CREATE TRIGGER IF NOT EXISTS usage_delete AFTER DELETE ON records BEGIN
    UPDATE usage SET bytes = bytes - length(old.sealed) WHERE tenant = old.tenant;
END;
"""
_VERSION: Final = 1
"""`user_version` of a file whose table `usage` has counted what was stored before that table was there."""
_OLDEST: Final = """
SELECT rowid, length(sealed) FROM records
WHERE tenant = ? AND progress IN (1, 2) AND id IS NOT ? ORDER BY rowid LIMIT ?
"""


class Quota:
    """Bounds one file of records. All methods but `count` are called within a transaction, in the database's thread."""

    def __init__(self, tenant_bytes: int | None) -> None:
        """Let each tenant store `tenant_bytes`, and all together FULL_TENANTS times that; None is no bound."""
        self._tenant_bytes = tenant_bytes

    def count(self, connection: sqlite3.Connection) -> None:
        """Count what an older version has stored, once, in a transaction of its own."""
        if connection.execute("PRAGMA user_version").fetchone()[0] < _VERSION:
            transaction(connection, self._recount)

    def enforce(self, connection: sqlite3.Connection, tenant: str, newest: str | None = None) -> int:
        """Drop the oldest turns of `tenant` while they take too much, and of the largest tenant while all do.

        The turn `newest` stays in any case. Returns how many turns went; at most STRIDE of one tenant go at once.
        """
        if self._tenant_bytes is None:
            return 0
        dropped = self._drop(connection, tenant, newest, self._used(connection, tenant) - self._tenant_bytes)
        total, largest = self._total(connection)
        over = total - FULL_TENANTS * self._tenant_bytes
        return dropped + (self._drop(connection, largest, newest, over) if over > 0 else 0)

    def enforce_all(self, connection: sqlite3.Connection) -> int:
        """Likewise for every tenant; what is left to drop goes with the next call, until none is dropped."""
        tenants = connection.execute("SELECT tenant FROM usage WHERE bytes > ?", (self._tenant_bytes or 1 << 62,))
        return sum(self.enforce(connection, tenant) for (tenant,) in tenants.fetchall())

    def take_dropped(self, connection: sqlite3.Connection, tenant: str) -> int:
        """Return how many turns of `tenant` were dropped since this was last asked."""
        [(dropped,)] = connection.execute("SELECT coalesce(max(dropped), 0) FROM usage WHERE tenant = ?", (tenant,))
        if dropped:
            connection.execute("UPDATE usage SET dropped = 0 WHERE tenant = ?", (tenant,))
        return int(dropped)

    @staticmethod
    def _recount(connection: sqlite3.Connection) -> None:
        # SQLite needs the index to find a tenant's oldest records.
        connection.execute("CREATE INDEX IF NOT EXISTS by_tenant ON records (tenant)")
        connection.execute("DELETE FROM usage")
        connection.execute("INSERT INTO usage SELECT tenant, sum(length(sealed)), 0 FROM records GROUP BY tenant")
        connection.execute(f"PRAGMA user_version = {_VERSION}")

    @staticmethod
    def _used(connection: sqlite3.Connection, tenant: str) -> int:
        [(used,)] = connection.execute("SELECT coalesce(max(bytes), 0) FROM usage WHERE tenant = ?", (tenant,))
        return int(used)

    @staticmethod
    def _total(connection: sqlite3.Connection) -> tuple[int, str]:
        """Return the bytes of all tenants, and the tenant that has the most."""
        [(total,)] = connection.execute("SELECT coalesce(sum(bytes), 0) FROM usage")
        largest = connection.execute("SELECT tenant FROM usage ORDER BY bytes DESC LIMIT 1").fetchall()
        return int(total), largest[0][0] if largest else ""

    @staticmethod
    def _drop(connection: sqlite3.Connection, tenant: str, newest: str | None, over: int) -> int:
        if over <= 0:
            return 0
        dropped = 0
        for rowid, length in connection.execute(_OLDEST, (tenant, newest, STRIDE)).fetchall():
            connection.execute("DELETE FROM records WHERE rowid = ?", (rowid,))
            dropped += 1
            over -= length
            if over <= 0:
                break
        connection.execute("UPDATE usage SET dropped = dropped + ? WHERE tenant = ?", (dropped, tenant))
        return dropped
