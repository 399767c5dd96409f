"""The tables of stored conversations, and the statements that write them."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from cache import block_deletions, document_tables, quota

NEVER: Final = 1e12
"""Expiry of a record that does not expire, in seconds since the epoch."""
SCHEMA: Final = (
    """
CREATE TABLE IF NOT EXISTS records (
    tenant TEXT NOT NULL, id TEXT NOT NULL, progress INTEGER NOT NULL, copied INTEGER NOT NULL, expires REAL NOT NULL,
    sealed BLOB NOT NULL, PRIMARY KEY (tenant, id)
) STRICT;
CREATE INDEX IF NOT EXISTS by_expiry ON records (expires);
CREATE INDEX IF NOT EXISTS outbox ON records (progress) WHERE copied = 0;
CREATE INDEX IF NOT EXISTS tombstones ON records (copied) WHERE progress = 3;
CREATE TABLE IF NOT EXISTS marks (only INTEGER PRIMARY KEY CHECK (only = 1), fingerprint TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS clock (only INTEGER PRIMARY KEY CHECK (only = 1), wall REAL NOT NULL, elapsed REAL NOT NULL)
STRICT;
CREATE TABLE IF NOT EXISTS journal (only INTEGER PRIMARY KEY CHECK (only = 1), seen TEXT NOT NULL, newest TEXT NOT NULL)
STRICT;
"""
    + quota.SCHEMA
    + block_deletions.SCHEMA
    + document_tables.SCHEMA
)
# `copied`: 0 while the record is in the outbox, else the time of copying in seconds since the epoch (1: unknown, set by
# an older version).
# A turn whose conversation was deleted meanwhile is not stored.
PUT: Final = """
INSERT INTO records SELECT ?1, ?2, ?3, ?6, ?4, ?5 WHERE NOT EXISTS (
    SELECT 1 FROM members JOIN documents ON documents.tenant = members.tenant AND documents.id = document
    WHERE members.tenant = ?1 AND turn = ?2 AND gone = 1)
ON CONFLICT DO UPDATE
SET progress = excluded.progress, copied = excluded.copied, expires = excluded.expires, sealed = excluded.sealed
WHERE records.progress < 2 RETURNING id
"""
BURY: Final = """
INSERT INTO records VALUES (?1, ?2, 3, ?3, ?4, x'') ON CONFLICT DO UPDATE
SET progress = 3, copied = ?3, expires = excluded.expires, sealed = x'' WHERE records.progress < 3 RETURNING id
"""
SWEEP: Final = """
DELETE FROM records WHERE rowid IN (
    SELECT rowid FROM records WHERE expires < ? AND (progress = 3 OR ?) AND NOT (progress < 3 AND EXISTS (
        SELECT 1 FROM members WHERE members.tenant = records.tenant AND turn = id))
    LIMIT 100)
RETURNING 1
"""
IS_MEMBER: Final = "SELECT 1 FROM members WHERE tenant = ? AND turn = ?"
CLAMP: Final = """
UPDATE records SET expires = ?1 WHERE rowid IN (SELECT rowid FROM records WHERE expires > ?1 AND progress < 3 LIMIT 100)
RETURNING 1
"""
READ_CLOCK: Final = "SELECT wall, elapsed FROM clock"
NEWEST: Final = f"SELECT max(expires) - ?, max(expires) - ? FROM records WHERE expires < {NEVER} HAVING count(*) > 0"  # noqa: S608 - a constant
SAVE_CLOCK: Final = "INSERT OR REPLACE INTO clock VALUES (1, ?, ?)"


class Progress(IntEnum):
    """The state of the response that a record describes."""

    RUNNING = 0
    INTERRUPTED = 1
    """Its gateway was presumed to have crashed. If it had not, the response may still end."""
    ENDED = 2
    """Final: the record is never written again."""
    GONE = 3
    """Deleted: the row is a tombstone without contents."""


class Row(NamedTuple):
    """The columns of a record that are copied from the outbox."""

    tenant: str
    id: str
    progress: int
    sealed: bytes
