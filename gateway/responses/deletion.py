"""Deletion of a response: its record, its copies, and its KV blocks, from which its text could be reconstructed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cache import StoreError
from gateway.conversations.turns import Turn
from gateway.responses.services import Services


@dataclass(frozen=True)
class _Target:
    """The tokens of a response to delete, and the ids of the KV blocks that hold them."""

    tokens: list[int]
    public: int
    """Number of leading tokens that come from the operator's instructions; their KV is not deleted."""
    start: int
    """Number of leading tokens shared with the previous turn, which still exists."""
    blocks: list[bytes]


async def delete(services: Services, tenant: str, response: str) -> bool:
    """Delete a response everywhere; return False if there is none. Raises StoreError.

    Turns that continue this response lose KV blocks, too, and compute them again. Blocks that cannot be deleted now are
    deleted later, from an outbox.
    """
    found = await services.sessions.get(tenant, response)
    if found is None:
        return False
    return await _remove(services, tenant, found, lambda blocks: services.sessions.delete(tenant, response, blocks))


async def delete_here(services: Services, tenant: str, response: str) -> None:
    """Delete from this gateway and its engines a response that another gateway has deleted."""

    async def bury(blocks: Sequence[bytes]) -> bool:
        await services.sessions.bury(tenant, response, blocks)
        return True

    found = await services.sessions.get_local(tenant, response)
    if found is None:
        await bury(())
    else:
        await _remove(services, tenant, found, bury)


async def delete_known(services: Services, tenant: str, ids: list[int]) -> None:
    """Delete the KV blocks of a conversation that a stateless client has sent. Raises ApiError or StoreError."""
    public = await services.prompt_builder.public(ids, int(services.clock()))

    def blocks() -> list[bytes]:
        return services.prefixes.deletable(services.prefixes.chain(ids, tenant, public=public), start=0)

    found = await asyncio.to_thread(blocks)
    await services.sessions.delete_blocks(found)
    if await services.pool.discard(ids, tenant, public=public, start=0):
        await services.sessions.blocks.finish(found)


async def _remove(
    services: Services,
    tenant: str,
    found: tuple[Turn, list[int] | None],
    remove: Callable[[Sequence[bytes]], Awaitable[bool]],
) -> bool:
    target = await _target(services, tenant, *found)
    if not await remove(target.blocks if target else ()):
        return False
    # Engines first: blocks that they have queued for storing would be written after the deletion.
    if target and await services.pool.discard(target.tokens, tenant, public=target.public, start=target.start):
        await services.sessions.blocks.finish(target.blocks)
    return True


async def _target(services: Services, tenant: str, turn: Turn, ids: list[int] | None) -> _Target | None:
    if ids is None:  # another vocabulary: the blocks belong to another model
        return None
    public, start = await services.prompt_builder.public(ids, turn.began), await _shared(services, tenant, turn, ids)

    def blocks() -> list[bytes]:
        return services.prefixes.deletable(services.prefixes.chain(ids, tenant, public=public), start=start)

    return _Target(ids, public, start, await asyncio.to_thread(blocks))


async def _shared(services: Services, tenant: str, turn: Turn, ids: list[int]) -> int:
    """Return the number of leading tokens shared with the previous turn, if that still exists."""
    if turn.previous is None:
        return 0
    try:
        found = await services.sessions.get(tenant, turn.previous)
    except StoreError:  # when in doubt, delete the block
        return 0
    before = found[1] if found else None
    return len(before) if before is not None and ids[: len(before)] == before else 0
