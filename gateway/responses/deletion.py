"""Deletion of a response: its record, its copies, and the KV of its conversation, which reads like a transcript."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cache import StoreError
from gateway.conversations.turns import Turn
from gateway.responses.services import House


@dataclass(frozen=True)
class _Doomed:
    """The tokens of a deleted response, and the ids of the KV blocks that hold them."""

    tokens: list[int]
    public: int
    """Tokens at the beginning that are the operator's, and stay."""
    start: int
    """Tokens that are also those of the turn before, which is still there."""
    blocks: list[bytes]


async def delete(house: House, tenant: str, response: str) -> bool:
    """Delete a response everywhere; False when there is none. Raises StoreError.

    What followed it loses KV blocks by this, too: they are computed again. Blocks that cannot be deleted now are
    deleted from an outbox.
    """
    found = await house.sessions.get(tenant, response)
    if found is None:
        return False
    return await _remove(house, tenant, found, lambda blocks: house.sessions.delete(tenant, response, blocks))


async def delete_here(house: House, tenant: str, response: str) -> None:
    """Delete what this gateway and its engines hold of a response that another gateway has deleted."""

    async def bury(blocks: Sequence[bytes]) -> bool:
        await house.sessions.bury(tenant, response, blocks)
        return True

    found = await house.sessions.get_local(tenant, response)
    if found is None:
        await bury(())
    else:
        await _remove(house, tenant, found, bury)


async def _remove(
    house: House,
    tenant: str,
    found: tuple[Turn, list[int] | None],
    remove: Callable[[Sequence[bytes]], Awaitable[bool]],
) -> bool:
    doomed = await _doomed(house, tenant, *found)
    if not await remove(doomed.blocks if doomed else ()):
        return False
    # Engines first: what they have queued would come after the deletion.
    if doomed and await house.pool.discard(doomed.tokens, tenant, public=doomed.public, start=doomed.start):
        await house.sessions.blocks.finish(doomed.blocks)
    return True


async def _doomed(house: House, tenant: str, turn: Turn, ids: list[int] | None) -> _Doomed | None:
    if ids is None:  # of another vocabulary, and so of another model's blocks
        return None
    public, start = await house.conversations.public(ids, turn.began), await _kept(house, tenant, turn, ids)

    def blocks() -> list[bytes]:
        return house.prefixes.deletable(house.prefixes.chain(ids, tenant, public=public), start=start)

    return _Doomed(ids, public, start, await asyncio.to_thread(blocks))


async def _kept(house: House, tenant: str, turn: Turn, ids: list[int]) -> int:
    """How many of the tokens are also those of the turn before, which is still there."""
    if turn.previous is None:
        return 0
    try:
        found = await house.sessions.get(tenant, turn.previous)
    except StoreError:  # in doubt a block is deleted
        return 0
    before = found[1] if found else None
    return len(before) if before is not None and ids[: len(before)] == before else 0
