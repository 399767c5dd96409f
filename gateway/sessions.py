"""Conversations: what was said and the token ids that the model saw, by response id, per tenant."""

from __future__ import annotations

import array
from pathlib import Path
from typing import Any

import msgspec

from cache import Database, StoreError
from gateway.protocol.items import Item

_SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    tenant TEXT NOT NULL, id TEXT NOT NULL, created_at INTEGER NOT NULL, vocabulary TEXT NOT NULL,
    ended INTEGER NOT NULL, body BLOB NOT NULL, ids BLOB NOT NULL, PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID
"""
# `ended` is 0 while it runs, 1 when it has ended and is never written again, 2 when its gateway was taken for dead.
_WRITE = """
INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
SET vocabulary = excluded.vocabulary, ended = excluded.ended, body = excluded.body, ids = excluded.ids
WHERE turns.ended <> 1 RETURNING id
"""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its answer, with all that a follow-up needs."""

    id: str
    previous: str | None
    created_at: int
    began: int
    """When its conversation began, in seconds of the epoch like `created_at`."""
    instructions: str | None
    items: list[Item]
    """The whole conversation: what the model was shown, then what it said."""
    input: int
    """How many of the items it was shown."""
    ended_by: str = "assistant"
    """Role of the message with which the stored ids end."""
    response: dict[str, Any]
    """The response as its latest event told it."""


class Sessions:
    """Stored turns. A turn is acknowledged when `add` returns: then it is on disk.

    `vocabulary` is the digest of the served model's vocabulary: ids of another one mean other text, so a turn stored
    under it comes back without ids and is rendered anew.
    """

    def __init__(self, path: Path, vocabulary: str) -> None:
        """Open or create the file. Raises StoreError."""
        self._database = Database(path, _SCHEMA)
        self._vocabulary = vocabulary

    async def begin(self, tenant: str, turn: Turn) -> None:
        """Note a turn that begins, so that a crash leaves word of it. Raises StoreError."""
        await self._write(tenant, turn, None, ended=0)

    async def add(self, tenant: str, turn: Turn, ids: list[int] | None) -> None:
        """Store a turn that ended and its conversation's token ids, end of turn excluded. Raises StoreError."""
        await self._write(tenant, turn, ids, ended=1)

    async def get(self, tenant: str, response: str) -> tuple[Turn, list[int] | None] | None:
        """A turn of this tenant's and its ids; None when there is none, or it is another's. Raises StoreError."""
        query = "SELECT body, ids, vocabulary FROM turns WHERE tenant = ? AND id = ?"
        rows = await self._database.run(query, (tenant, response))
        if not rows:
            return None
        body, ids, vocabulary = rows[0]
        return msgspec.json.decode(body, type=Turn), _unpack(ids) if vocabulary == self._vocabulary else None

    async def delete(self, tenant: str, response: str) -> bool:
        """Delete a turn; False when there is none. What was said after it keeps its history. Raises StoreError."""
        query = "DELETE FROM turns WHERE tenant = ? AND id = ? RETURNING id"
        return bool(await self._database.run(query, (tenant, response)))

    async def interrupted(self) -> int:
        """Mark what an earlier gateway left unended as incomplete, and count it. Raises StoreError."""
        rows = await self._database.run("SELECT tenant, body FROM turns WHERE ended = 0")
        for tenant, body in rows:
            turn = msgspec.json.decode(body, type=Turn)
            response = {**turn.response, "status": "incomplete", "incomplete_details": {"reason": "interrupted"}}
            await self._write(tenant, msgspec.structs.replace(turn, response=response), None, ended=2)
        return len(rows)

    async def _write(self, tenant: str, turn: Turn, ids: list[int] | None, *, ended: int) -> None:
        vocabulary = "" if ids is None else self._vocabulary
        row = (tenant, turn.id, turn.created_at, vocabulary, ended, msgspec.json.encode(turn), _pack(ids or []))
        if not await self._database.run(_WRITE, row):
            raise StoreError(f"{turn.id} has ended already")

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _pack(ids: list[int]) -> bytes:
    return array.array("i", ids).tobytes()


def _unpack(data: bytes) -> list[int]:
    ids = array.array("i")
    ids.frombytes(data)
    return ids.tolist()
