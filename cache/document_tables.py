"""The tables of documents, and the statements that write them.

A document is a sealed record that changes, such as the list of a conversation's turns. Its members are turns, rows of
`records`, which live as long as their document. A member is redundant if a later member holds all of its text.
"""

from __future__ import annotations

import sqlite3
from typing import Final

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS documents (
    tenant TEXT NOT NULL, id TEXT NOT NULL, gone INTEGER NOT NULL, updated INTEGER NOT NULL, place INTEGER NOT NULL,
    copied INTEGER NOT NULL, expires REAL NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (tenant, id)
) STRICT;
CREATE INDEX IF NOT EXISTS documents_by_update ON documents (tenant, updated, id) WHERE gone = 0;
CREATE INDEX IF NOT EXISTS documents_by_place ON documents (tenant, place) WHERE gone = 0;
CREATE INDEX IF NOT EXISTS documents_by_expiry ON documents (expires);
CREATE INDEX IF NOT EXISTS documents_outbox ON documents (copied) WHERE copied = 0;
CREATE TABLE IF NOT EXISTS members (
    tenant TEXT NOT NULL, turn TEXT NOT NULL, document TEXT NOT NULL, redundant INTEGER NOT NULL,
    PRIMARY KEY (tenant, turn)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS members_by_document ON members (tenant, document);
CREATE TABLE IF NOT EXISTS document_epochs (tenant TEXT PRIMARY KEY, epoch TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS documents_insert AFTER INSERT ON documents BEGIN
    INSERT INTO usage VALUES (new.tenant, length(new.sealed), 0)
    ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER IF NOT EXISTS documents_update AFTER UPDATE OF sealed ON documents BEGIN
    UPDATE usage SET bytes = bytes + length(new.sealed) - length(old.sealed) WHERE tenant = new.tenant;
END;
CREATE TRIGGER IF NOT EXISTS documents_delete AFTER DELETE ON documents BEGIN
    UPDATE usage SET bytes = bytes - length(old.sealed) WHERE tenant = old.tenant;
END;
"""
# `updated` is in milliseconds since the epoch. `place` is the newest rowid of `records` at the last change: it orders
# documents and turns by age, whatever the clock says. `copied`: 0 while the document has to be published to other
# gateways, else when it was last known to be published, in seconds since the epoch by the system clock.
# `document_epochs` names, by tenant, the table at Redis with which this file was last compared.
PUT: Final = """
INSERT INTO documents VALUES (?1, ?2, 0, ?3, (SELECT coalesce(max(rowid), 0) FROM records), ?4, ?5, ?6)
ON CONFLICT DO UPDATE
SET updated = excluded.updated, place = excluded.place, copied = excluded.copied, expires = excluded.expires,
    sealed = excluded.sealed
WHERE documents.gone = 0
"""
BURY: Final = """
INSERT INTO documents VALUES (?1, ?2, 1, ?3, 0, ?4, ?5, x'') ON CONFLICT DO UPDATE
SET gone = 1, updated = excluded.updated, copied = excluded.copied, expires = excluded.expires, sealed = x''
WHERE documents.gone = 0
"""
GET: Final = "SELECT gone, updated, copied, expires, sealed FROM documents WHERE tenant = ? AND id = ?"
LISTED: Final = """
SELECT id, sealed FROM documents
WHERE tenant = ? AND gone = 0 AND (updated, id) {0} (?, ?) ORDER BY updated {1}, id {1} LIMIT ?
"""
NEWEST_FIRST: Final = LISTED.format("<", "DESC")
OLDEST_FIRST: Final = LISTED.format(">", "ASC")
ALL: Final = "SELECT id, gone, copied FROM documents WHERE tenant = ?"
# The size of a document leaves out redundant members, which the quota deletes and counts by themselves.
OLDEST: Final = """
SELECT place, id, length(sealed) + coalesce((
    SELECT sum(length(records.sealed)) FROM members JOIN records ON records.tenant = members.tenant AND id = turn
    WHERE members.tenant = documents.tenant AND document = documents.id AND redundant = 0), 0)
FROM documents WHERE tenant = ?1 AND gone = 0
    AND id IS NOT (SELECT document FROM members WHERE tenant = ?1 AND turn = ?2)
ORDER BY place LIMIT ?3
"""
ADD_MEMBER: Final = """
INSERT INTO members VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET redundant = excluded.redundant
WHERE members.document = excluded.document
"""
REMOVE: Final = "DELETE FROM documents WHERE tenant = ? AND id = ?"
COUNT: Final = "SELECT count(*) FROM documents WHERE tenant = ? AND gone = 0"
OUTBOX: Final = "SELECT id, gone, sealed FROM documents WHERE copied = 0 AND tenant = ? LIMIT ?"
WAITING: Final = "SELECT DISTINCT tenant FROM documents WHERE copied = 0"
COPIED: Final = "UPDATE documents SET copied = ? WHERE tenant = ? AND id = ? AND gone = ? AND sealed = ?"
SET_EPOCH: Final = "INSERT OR REPLACE INTO document_epochs VALUES (?, ?)"
# Turns that outlived their document: a deletion was interrupted, or another gateway has deleted the document.
ORPHANS: Final = """
SELECT tenant, turn FROM members WHERE NOT EXISTS (
    SELECT 1 FROM documents WHERE documents.tenant = members.tenant AND documents.id = document AND gone = 0)
LIMIT ?
"""
EXPIRED: Final = "SELECT tenant, id, gone FROM documents WHERE expires < ? AND (gone = 1 OR ?) LIMIT 100"
# Copies of turns that expire soon, although their conversation needs them.
FADING: Final = """
UPDATE records SET copied = 0 WHERE rowid IN (
    SELECT records.rowid FROM members JOIN records ON records.tenant = members.tenant AND records.id = turn
    WHERE redundant = 0 AND progress < 3 AND copied BETWEEN 1 AND ? LIMIT 100)
RETURNING 1
"""


def crowd_out(connection: sqlite3.Connection, tenant: str, id_: str, *, now: float, tombstone: float | None) -> int:
    """Delete a document and its turns to make room, and return the number of turns.

    With `tombstone`, a lifetime in seconds, other gateways delete it, too. Call within a transaction.
    """
    turns = connection.execute("SELECT turn FROM members WHERE tenant = ? AND document = ?", (tenant, id_)).fetchall()
    dropped = 0
    for (turn,) in turns:
        done = connection.execute("DELETE FROM records WHERE tenant = ? AND id = ? AND progress < 3", (tenant, turn))
        dropped += done.rowcount
    connection.execute("DELETE FROM members WHERE tenant = ? AND document = ?", (tenant, id_))
    if tombstone is None:
        connection.execute(REMOVE, (tenant, id_))
    else:
        connection.execute(BURY, (tenant, id_, int(now * 1000), 0, now + tombstone))
    return dropped
