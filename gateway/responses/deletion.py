"""Deletion of a response: its record, its copies, and the KV of its conversation, which reads like a transcript."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cache import StoreError
from gateway.conversations.turns import Turn
from gateway.responses.services import Services


@dataclass(frozen=True)
class _Doomed:
    """The tokens of a deleted response, and the ids of the KV blocks that hold them."""

    tokens: list[int]
    public: int
    """Tokens at the beginning that are the operator's, and stay."""
    start: int
    """Tokens that are also those of the turn before, which is still there."""
    blocks: list[bytes]


async def delete(services: Services, tenant: str, response: str) -> bool:
    """Delete a response everywhere; False when there is none. Raises StoreError.

    What followed it loses KV blocks by this, too: they are computed again. Blocks that cannot be deleted now are
    deleted from an outbox.
    """
    found = await services.sessions.get(tenant, response)
    if found is None:
        return False
    return await _remove(services, tenant, found, lambda blocks: services.sessions.delete(tenant, response, blocks))


async def delete_here(services: Services, tenant: str, response: str) -> None:
    """Delete what this gateway and its engines hold of a response that another gateway has deleted."""

    async def bury(blocks: Sequence[bytes]) -> bool:
        await services.sessions.bury(tenant, response, blocks)
        return True

    found = await services.sessions.get_local(tenant, response)
    if found is None:
        await bury(())
    else:
        await _remove(services, tenant, found, bury)


async def _remove(
    services: Services,
    tenant: str,
    found: tuple[Turn, list[int] | None],
    remove: Callable[[Sequence[bytes]], Awaitable[bool]],
) -> bool:
    doomed = await _doomed(services, tenant, *found)
    if not await remove(doomed.blocks if doomed else ()):
        return False
    # Engines first: what they have queued would come after the deletion.
    if doomed and await services.pool.discard(doomed.tokens, tenant, public=doomed.public, start=doomed.start):
        await services.sessions.blocks.finish(doomed.blocks)
    return True


async def _doomed(services: Services, tenant: str, turn: Turn, ids: list[int] | None) -> _Doomed | None:
    if ids is None:  # of another vocabulary, and so of another model's blocks
        return None
    public, start = await services.prompt_builder.public(ids, turn.began), await _kept(services, tenant, turn, ids)

    def blocks() -> list[bytes]:
        return services.prefixes.deletable(services.prefixes.chain(ids, tenant, public=public), start=start)

    return _Doomed(ids, public, start, await asyncio.to_thread(blocks))


async def _kept(services: Services, tenant: str, turn: Turn, ids: list[int]) -> int:
    """How many of the tokens are also those of the turn before, which is still there."""
    if turn.previous is None:
        return 0
    try:
        found = await services.sessions.get(tenant, turn.previous)
    except StoreError:  # in doubt a block is deleted
        return 0
    before = found[1] if found else None
    return len(before) if before is not None and ids[: len(before)] == before else 0
