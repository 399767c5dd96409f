"""Limits on the size of stored conversations, per user and for the whole file. The oldest are deleted first.

A turn that belongs to no conversation, or whose text a later turn of its conversation holds, is deleted by itself. All
other turns are deleted together with their conversation.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from cache.document_tables import COUNT, OLDEST, crowd_out
from cache.sqlite_file import transaction

FULL_TENANTS: Final = 64
"""Limit of the whole file, as a multiple of one user's limit."""
STRIDE: Final = 64
"""Maximum turns that one call deletes per tenant: other requests wait for the database meanwhile."""
DOCUMENT_STRIDE: Final = 16
"""Maximum conversations that one call deletes per tenant; each may have many turns."""
MAX_DOCUMENTS: Final = 10_000
"""Maximum conversations of one tenant. Beyond it, the least recently changed is deleted."""
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
SELECT rowid, length(sealed), EXISTS (SELECT 1 FROM members WHERE members.tenant = records.tenant AND turn = id)
FROM records WHERE tenant = ? AND progress IN (1, 2) AND id IS NOT ? AND NOT EXISTS (
    SELECT 1 FROM members WHERE members.tenant = records.tenant AND turn = id AND redundant = 0)
ORDER BY rowid LIMIT ?
"""


class Quota:
    """Limits one file of records. Call all methods but `count` within a transaction, in the database's thread."""

    def __init__(
        self, tenant_bytes: int | None, *, clock: Callable[[], float] = lambda: 0.0, tombstone: float | None = None
    ) -> None:
        """Let each tenant store `tenant_bytes`, and all together FULL_TENANTS times that; None means no limit.

        A deleted conversation leaves a tombstone for `tombstone` seconds by `clock`, or none.
        """
        self._tenant_bytes = tenant_bytes
        self.clock = clock
        self._tombstone = tombstone
        self._crowded_out: list[tuple[str, str]] = []

    def take_crowded_out(self) -> list[tuple[str, str]]:
        """Return tenant and id of the conversations that were deleted since the last call."""
        taken, self._crowded_out = self._crowded_out, []
        return taken

    def limit_documents(self, connection: sqlite3.Connection, tenant: str) -> None:
        """Delete the least recently changed conversations of `tenant` beyond MAX_DOCUMENTS."""
        [(count,)] = connection.execute(COUNT, (tenant,))
        excess = min(count - MAX_DOCUMENTS, DOCUMENT_STRIDE)
        if excess > 0:
            for _, id_, _ in connection.execute(OLDEST, (tenant, None, excess)).fetchall():
                self._drop_document(connection, tenant, id_)

    def count(self, connection: sqlite3.Connection) -> None:
        """Count what an older version has stored, once per file, in a separate transaction."""
        if connection.execute("PRAGMA user_version").fetchone()[0] < _VERSION:
            transaction(connection, self._recount)

    def enforce(self, connection: sqlite3.Connection, tenant: str, newest: str | None = None) -> int:
        """Delete the oldest turns of `tenant` if it exceeds its limit, and of the largest tenant if the file does.

        The turn `newest` and its conversation are never deleted. Returns the number of deleted turns and conversations,
        at most STRIDE and DOCUMENT_STRIDE per tenant and call.
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
        """Return how many turns of `tenant` were lost since the last call, not counting redundant ones."""
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

    def _drop(self, connection: sqlite3.Connection, tenant: str, newest: str | None, over: int) -> int:
        """Delete turns and conversations, the oldest first, until `over` bytes are freed; return their number."""
        if over <= 0:
            return 0
        turns = connection.execute(_OLDEST, (tenant, newest, STRIDE)).fetchall()
        documents = connection.execute(OLDEST, (tenant, newest, DOCUMENT_STRIDE)).fetchall()
        deleted = lost = 0
        while over > 0 and (turns or documents):
            if turns and (not documents or turns[0][0] <= documents[0][0]):
                rowid, length, is_redundant = turns.pop(0)
                connection.execute("DELETE FROM records WHERE rowid = ?", (rowid,))
                lost += not is_redundant
            else:
                _, id_, length = documents.pop(0)
                lost += self._drop_document(connection, tenant, id_)
            deleted += 1
            over -= length
        connection.execute("UPDATE usage SET dropped = dropped + ? WHERE tenant = ?", (lost, tenant))
        return deleted

    def _drop_document(self, connection: sqlite3.Connection, tenant: str, id_: str) -> int:
        self._crowded_out.append((tenant, id_))
        return crowd_out(connection, tenant, id_, now=self.clock(), tombstone=self._tombstone)
