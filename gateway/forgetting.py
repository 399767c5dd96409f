"""What else goes when a response is deleted: the KV of its conversation, which reads like a transcript."""

from __future__ import annotations

import asyncio

from cache import StoreError
from gateway.house import House
from gateway.sessions import Turn


async def forget(house: House, tenant: str, turn: Turn, ids: list[int] | None) -> None:
    """Delete the tenant's blocks of a deleted turn's tokens, but for those of the turn that it continued.

    What followed it loses blocks by this, too: they are computed again. While the store is away nothing is deleted;
    then they go unread when their time is over.
    """
    if ids is None:  # of another vocabulary, and so of another model's blocks
        return
    public = await house.conversations.public(ids, turn.began)
    chain = house.prefixes.chain(ids, tenant, public=public)
    await asyncio.to_thread(house.prefixes.forget, chain, start=await _kept(house, tenant, turn, ids))


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
