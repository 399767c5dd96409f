"""Conversations: what was said and the token ids that the model saw, by response id, per tenant."""

from __future__ import annotations

import array
from pathlib import Path
from typing import Any

import msgspec

from cache import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    tenant TEXT NOT NULL, id TEXT NOT NULL, created_at INTEGER NOT NULL, vocabulary TEXT NOT NULL,
    body BLOB NOT NULL, ids BLOB NOT NULL, PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID
"""


class Turn(msgspec.Struct, frozen=True):
    """One answered request, with all that a follow-up needs."""

    id: str
    previous: str | None
    created_at: int
    began: int
    """When its conversation began, in seconds of the epoch like `created_at`."""
    instructions: str | None
    history: list[dict[str, str]]
    """All messages of the conversation, the answer last."""
    response: dict[str, Any]
    """The response as its terminal event told it."""


class Sessions:
    """Stored turns. A turn is acknowledged when `add` returns: then it is on disk.

    `vocabulary` is the digest of the served model's vocabulary: ids of another one mean other text, so a turn stored
    under it comes back without ids and is rendered anew.
    """

    def __init__(self, path: Path, vocabulary: str) -> None:
        """Open or create the file. Raises StoreError."""
        self._database = Database(path, _SCHEMA)
        self._vocabulary = vocabulary

    async def add(self, tenant: str, turn: Turn, ids: list[int]) -> None:
        """Store a turn and its conversation's token ids, end of turn excluded. Raises StoreError."""
        row = (tenant, turn.id, turn.created_at, self._vocabulary, msgspec.json.encode(turn), _pack(ids))
        await self._database.run("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)

    async def get(self, tenant: str, response: str) -> tuple[Turn, list[int] | None] | None:
        """A turn of this tenant's and its ids; None when there is none, or it is another's. Raises StoreError."""
        query = "SELECT body, ids, vocabulary FROM responses WHERE tenant = ? AND id = ?"
        rows = await self._database.run(query, (tenant, response))
        if not rows:
            return None
        body, ids, vocabulary = rows[0]
        return msgspec.json.decode(body, type=Turn), _unpack(ids) if vocabulary == self._vocabulary else None

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _pack(ids: list[int]) -> bytes:
    return array.array("i", ids).tobytes()


def _unpack(data: bytes) -> list[int]:
    ids = array.array("i")
    ids.frombytes(data)
    return ids.tolist()
