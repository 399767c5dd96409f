"""Limits on the size of stored conversations, per user and for the whole file. The oldest turns are deleted first."""

from __future__ import annotations

import sqlite3
from typing import Final

from cache.sqlite_file import transaction

FULL_TENANTS: Final = 64
"""Limit of the whole file, as a multiple of one user's limit."""
STRIDE: Final = 64
"""Maximum turns that one call deletes per tenant: other requests wait for the database meanwhile."""
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
"""`user_version` of a file whose table `usage` includes records stored before that table existed."""
_OLDEST: Final = """
SELECT rowid, length(sealed) FROM records
WHERE tenant = ? AND progress IN (1, 2) AND id IS NOT ? ORDER BY rowid LIMIT ?
"""


class Quota:
    """Limits one file of records. Call all methods but `count` within a transaction, in the database's thread."""

    def __init__(self, tenant_bytes: int | None) -> None:
        """Let each tenant store `tenant_bytes`, and all together FULL_TENANTS times that; None means no limit."""
        self._tenant_bytes = tenant_bytes

    def count(self, connection: sqlite3.Connection) -> None:
        """Count what an older version has stored, once per file, in a separate transaction."""
        if connection.execute("PRAGMA user_version").fetchone()[0] < _VERSION:
            transaction(connection, self._recount)

    def enforce(self, connection: sqlite3.Connection, tenant: str, newest: str | None = None) -> int:
        """Delete the oldest turns of `tenant` if it exceeds its limit, and of the largest tenant if the file does.

        The turn `newest` is never deleted. Returns the number of deleted turns, at most STRIDE per tenant and call.
        """
        if self._tenant_bytes is None:
            return 0
        dropped = self._drop(connection, tenant, newest, self._used(connection, tenant) - self._tenant_bytes)
        total, largest = self._total(connection)
        over = total - FULL_TENANTS * self._tenant_bytes
        return dropped + (self._drop(connection, largest, newest, over) if over > 0 else 0)

    def enforce_all(self, connection: sqlite3.Connection) -> int:
        """Run `enforce` for every tenant beyond its limit. Call it again until it returns 0."""
        tenants = connection.execute("SELECT tenant FROM usage WHERE bytes > ?", (self._tenant_bytes or 1 << 62,))
        return sum(self.enforce(connection, tenant) for (tenant,) in tenants.fetchall())

    def take_dropped(self, connection: sqlite3.Connection, tenant: str) -> int:
        """Return how many turns of `tenant` were deleted since the last call."""
        [(dropped,)] = connection.execute("SELECT coalesce(max(dropped), 0) FROM usage WHERE tenant = ?", (tenant,))
        if dropped:
            connection.execute("UPDATE usage SET dropped = 0 WHERE tenant = ?", (tenant,))
        return int(dropped)

    @staticmethod
    def _recount(connection: sqlite3.Connection) -> None:
        # Without this index SQLite would scan all records to find a tenant's oldest.
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
        """Return the bytes of all tenants together, and the tenant with the most bytes."""
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
