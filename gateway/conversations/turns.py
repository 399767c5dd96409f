"""Conversations: what was said and the token ids that the model saw, by response id, per tenant."""

from __future__ import annotations

import array
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from cache import Archive, BlockDeletions, Progress, StoreError
from gateway.protocol.items import Item

UNENDED: Final = ("queued", "in_progress")
"""Statuses of a response that runs."""


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


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A turn as it is stored."""

    turn: Turn
    vocabulary: str
    """Digest of the vocabulary that `ids` are of; empty when there are none."""
    ids: bytes


class Sessions:
    """Stored turns. A turn is acknowledged when `add` returns: then it is on disk.

    `vocabulary` is the digest of the served model's vocabulary: ids of another one mean other text, so a turn stored
    under it comes back without ids and is rendered anew.
    """

    def __init__(self, archive: Archive, vocabulary: str) -> None:
        """Keep turns in `archive`, which is closed with the sessions."""
        self._archive = archive
        self._vocabulary = vocabulary
        self._decoder = msgspec.msgpack.Decoder(_Record)

    async def begin(self, tenant: str, turn: Turn, ids: list[int] | None = None) -> None:
        """Note a turn that runs, as far as it has come, so that a crash leaves word of it. Raises StoreError."""
        await self._write(tenant, turn, ids, Progress.RUNNING)

    async def add(self, tenant: str, turn: Turn, ids: list[int] | None) -> int:
        """Store a turn that ended and its conversation's token ids, end of turn excluded. Raises StoreError.

        Returns how many of the tenant's turns were dropped for want of room since the last call.
        """
        await self._write(tenant, turn, ids, Progress.ENDED)
        with suppress(StoreError):  # of a damaged file; the turn is stored
            return await self._archive.take_dropped(tenant)
        return 0

    async def get(self, tenant: str, response: str) -> tuple[Turn, list[int] | None] | None:
        """A turn of this tenant's and its ids; None when there is none, or it is another's. Raises StoreError."""
        body = await self._archive.get(tenant, response)
        if body is None:
            return None
        record = self._decoder.decode(body)
        if record.turn.response["status"] in UNENDED:
            # Who asks here does so because it does not run: a damaged file kept `interrupted` from marking it.
            record = msgspec.structs.replace(record, turn=_interrupted(record.turn))
            with suppress(StoreError):
                await self._put(tenant, record, Progress.INTERRUPTED)
        return self._opened(record)

    async def get_local(self, tenant: str, response: str) -> tuple[Turn, list[int] | None] | None:
        """A turn as this gateway has stored it, even if another one has deleted it. Raises StoreError."""
        body = await self._archive.get_local(tenant, response)
        return None if body is None else self._opened(self._decoder.decode(body))

    async def is_deleted(self, tenant: str, response: str) -> bool:
        """Whether a turn was deleted, here or at another gateway. Raises StoreError."""
        return await self._archive.is_deleted(tenant, response)

    async def delete(self, tenant: str, response: str, blocks: Sequence[bytes] = ()) -> bool:
        """Delete a turn; False when there is none. What was said after it keeps its history. Raises StoreError.

        The ids of its KV `blocks` go into the outbox `self.blocks` in the same transaction.
        """
        return await self._archive.delete(tenant, response, blocks)

    async def bury(self, tenant: str, response: str, blocks: Sequence[bytes]) -> None:
        """Likewise, for a turn that another gateway has deleted everywhere."""
        await self._archive.bury(tenant, response, blocks)

    @property
    def blocks(self) -> BlockDeletions:
        """KV blocks that have still to be deleted."""
        return self._archive.blocks

    def on_deletion(self, callback: Callable[[str, str], Awaitable[None]]) -> None:
        """Have `callback` called with tenant and id of each turn that another gateway deletes; it has to bury it."""
        self._archive.on_deletion = callback

    async def interrupted(self) -> int:
        """Mark what an earlier gateway left unended as incomplete, and count it. Raises StoreError."""
        running = await self._archive.running()
        for tenant, _, body in running:
            record = self._decoder.decode(body)
            interrupted = msgspec.structs.replace(record, turn=_interrupted(record.turn))
            await self._put(tenant, interrupted, Progress.INTERRUPTED)
        return len(running)

    async def keep(self) -> None:
        """Do what could not be done at once, hear of deletions, and drop what is past its time. Never returns."""
        await self._archive.run()

    def _opened(self, record: _Record) -> tuple[Turn, list[int] | None]:
        return record.turn, _unpack(record.ids) if record.vocabulary == self._vocabulary else None

    async def _write(self, tenant: str, turn: Turn, ids: list[int] | None, progress: Progress) -> None:
        await self._put(tenant, _Record(turn, "" if ids is None else self._vocabulary, _pack(ids or [])), progress)

    async def _put(self, tenant: str, record: _Record, progress: Progress) -> None:
        if not await self._archive.put(tenant, record.turn.id, msgspec.msgpack.encode(record), progress):
            raise StoreError(f"{record.turn.id} has ended already")

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def _interrupted(turn: Turn) -> Turn:
    """The turn as a crash left it: what was there of its answer is all that comes."""
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
