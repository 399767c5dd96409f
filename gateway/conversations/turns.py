"""Stored turns: items and token ids of conversations, by tenant and response id."""

from __future__ import annotations

import array
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from cache import Archive, BlockDeletions, Documents, Progress, Snapshot, StoreError
from gateway.protocol.items import Item
from gateway.protocol.response_events import LATER_FIELDS

UNENDED: Final = ("queued", "in_progress")
"""Statuses of a response that has not ended."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its answer, with everything that a follow-up request needs."""

    id: str
    previous: str | None
    created_at: int
    began: int
    """When the conversation began, in seconds since the epoch like `created_at`."""
    instructions: str | None
    items: list[Item]
    """The whole conversation: the model's input, then its output."""
    input: int
    """How many of `items` are the model's input."""
    ended_by: str = "assistant"
    """Role of the message with which the stored ids end."""
    thinking: bool = False
    """Whether the chat template asked the model to reason."""
    response: dict[str, Any]
    """The response object of the latest event."""


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A turn as it is stored."""

    turn: Turn
    vocabulary: str
    """Digest of the vocabulary of `ids`; empty if there are no ids."""
    ids: bytes


class Sessions:
    """Stored turns. When `add` returns, the turn is on disk and may be acknowledged.

    `vocabulary` is the digest of the served model's vocabulary. Ids of another vocabulary mean other text, so such a
    turn is returned without ids and tokenized again.
    """

    def __init__(self, archive: Archive, vocabulary: str) -> None:
        """Store turns in `archive`, which `close` closes."""
        self._archive = archive
        self._vocabulary = vocabulary
        self._decoder = msgspec.msgpack.Decoder(_Record)

    async def begin(self, tenant: str, turn: Turn, ids: list[int] | None = None) -> None:
        """Store a running turn in its current state, so that it survives a crash. Raises StoreError."""
        await self._write(tenant, turn, ids, Progress.RUNNING)

    async def add(self, tenant: str, turn: Turn, ids: list[int] | None) -> int:
        """Store an ended turn and its conversation's token ids, without the end-of-turn token. Raises StoreError.

        Returns how many of the tenant's turns the quota has deleted since the last call.
        """
        await self._write(tenant, turn, ids, Progress.ENDED)
        with suppress(StoreError):  # the file is damaged, but the turn is stored
            return await self._archive.take_dropped(tenant)
        return 0

    async def get(self, tenant: str, response: str) -> tuple[Turn, list[int] | None] | None:
        """Return a turn of this tenant and its token ids, or None if the tenant has no such turn. Raises StoreError."""
        body = await self._archive.get(tenant, response)
        if body is None:
            return None
        record = self._decoder.decode(body)
        if record.turn.response["status"] in UNENDED:
            # Callers ask here only for turns that are not running: a damaged file prevented `mark_interrupted`.
            record = msgspec.structs.replace(record, turn=_interrupted(record.turn))
            with suppress(StoreError):
                await self._put(tenant, record, Progress.INTERRUPTED)
        return self._opened(record)

    async def exists(self, tenant: str, response: str) -> bool:
        """Return whether a turn is stored here or, if it belongs to a conversation, at another gateway."""
        return await self._archive.has(tenant, response)

    async def get_local(self, tenant: str, response: str) -> tuple[Turn, list[int] | None] | None:
        """Return a turn as stored at this gateway, even if another gateway has deleted it. Raises StoreError."""
        body = await self._archive.get_local(tenant, response)
        return None if body is None else self._opened(self._decoder.decode(body))

    async def is_deleted(self, tenant: str, response: str) -> bool:
        """Return whether a turn was deleted, here or at another gateway. Raises StoreError."""
        return await self._archive.is_deleted(tenant, response)

    async def delete(self, tenant: str, response: str, blocks: Sequence[bytes] = ()) -> bool:
        """Delete a turn; return False if there is none. Later turns keep their history. Raises StoreError.

        The ids of its KV `blocks` go into the outbox `self.blocks` in the same transaction.
        """
        return await self._archive.delete(tenant, response, blocks)

    async def turns(self, tenant: str, *, limit: int) -> list[str]:
        """Return ids of the tenant's turns that are stored here, the newest first. Raises StoreError."""
        return await self._archive.ids(tenant, limit=limit)

    async def delete_blocks(self, blocks: Sequence[bytes]) -> None:
        """Add KV blocks to the outbox `self.blocks`. Raises StoreError."""
        await self._archive.delete_blocks(blocks)

    async def bury(self, tenant: str, response: str, blocks: Sequence[bytes]) -> None:
        """Delete the local copy of a turn that another gateway has deleted for all. Raises StoreError."""
        await self._archive.bury(tenant, response, blocks)

    async def stored_bytes(self, tenant: str | None = None) -> dict[str, int]:
        """Return the bytes that turns take by tenant, of one or of all tenants that have any. Raises StoreError."""
        return await self._archive.stored_bytes(tenant)

    @property
    def documents(self) -> Documents:
        """The conversations that turns belong to."""
        return self._archive.documents

    def snapshot(self, tenant: str) -> Snapshot:
        """Return a reader of a tenant's conversations and turns, for use in another thread."""
        return self._archive.snapshot(tenant)

    @property
    def blocks(self) -> BlockDeletions:
        """The outbox of KV blocks to delete."""
        return self._archive.blocks

    def on_deletion(self, callback: Callable[[str, str], Awaitable[None]]) -> None:
        """Call `callback` with tenant and id of each turn that another gateway deletes; it must call `bury`."""
        self._archive.on_deletion = callback

    async def mark_interrupted(self) -> int:
        """Mark turns left running by an earlier process as incomplete and return their number. Raises StoreError."""
        running = await self._archive.running()
        for tenant, _, body in running:
            record = self._decoder.decode(body)
            interrupted = msgspec.structs.replace(record, turn=_interrupted(record.turn))
            await self._put(tenant, interrupted, Progress.INTERRUPTED)
        return len(running)

    async def run(self) -> None:
        """Run the archive's background work (see Archive.run) until cancelled."""
        await self._archive.run()

    def _opened(self, record: _Record) -> tuple[Turn, list[int] | None]:
        turn = msgspec.structs.replace(record.turn, response={**LATER_FIELDS, **record.turn.response})
        return turn, _unpack(record.ids) if record.vocabulary == self._vocabulary else None

    async def _write(self, tenant: str, turn: Turn, ids: list[int] | None, progress: Progress) -> None:
        await self._put(tenant, _Record(turn, "" if ids is None else self._vocabulary, _pack(ids or [])), progress)

    async def _put(self, tenant: str, record: _Record, progress: Progress) -> None:
        if not await self._archive.put(tenant, record.turn.id, msgspec.msgpack.encode(record), progress):
            raise StoreError(f"{record.turn.id} has already ended")

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def _interrupted(turn: Turn) -> Turn:
    """Return the turn, left running by a crash, as incomplete with the part of the answer that exists."""
    items = [*turn.items[: turn.input], *map(_cut_off, turn.items[turn.input :])]
    details = {"reason": "interrupted", "message": "the gateway was stopped in the middle of the answer"}
    output = [_cut_off(item) for item in turn.response["output"]]
    response = {**turn.response, "status": "incomplete", "incomplete_details": details, "output": output}
    return msgspec.structs.replace(turn, items=items, response=response)


def _cut_off(item: Item) -> Item:
    return {**item, "status": "incomplete"} if item.get("status") == "in_progress" else item


def _pack(ids: list[int]) -> bytes:
    return array.array("i", ids).tobytes()


def _unpack(data: bytes) -> list[int]:
    ids = array.array("i")
    ids.frombytes(data)
    return ids.tolist()
