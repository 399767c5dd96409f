"""Erasure of a user: conversations, turns, copies, KV blocks and usage at this gateway."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from cache import StoreError
from gateway.errors import ApiError
from gateway.responses.deletion import delete_known
from gateway.responses.registry import Responses

EVERY_SECONDS: Final = 1.0
"""Seconds between two looks for users to erase."""
log = structlog.get_logger("gateway")


class Erasure:
    """Erases users whom `samovar keys delete` or another gateway names."""

    def __init__(self, responses: Responses) -> None:
        """Erase what the gateway of `responses` holds."""
        self._responses = responses
        self._services = responses.services

    async def run(self) -> None:
        """Erase users until cancelled. What fails is tried again."""
        registry = self._services.registry
        while True:
            with suppress(StoreError, ApiError):
                for tenant in await registry.pending_erasures():
                    await registry.refresh()  # ends the user's connections first
                    await self.erase(tenant)
                    await registry.finish_erasure(tenant)
                    log.info("user erased", tenant=tenant[:8])
            await asyncio.sleep(EVERY_SECONDS)

    async def erase(self, tenant: str) -> None:
        """Erase a user's data. Raises StoreError or ApiError; then a part of it may be left."""
        services = self._services
        await self._responses.stop_tenant(tenant)
        while page := await services.conversations.page(tenant, limit=100, after=None, newest_first=True):
            if not page[0]:
                break
            for conversation in page[0]:
                await services.conversations.delete(tenant, conversation.id)
        while turns := await services.sessions.turns(tenant, limit=100):
            for turn in turns:
                if not await self._responses.delete_turn(tenant, turn):  # no longer readable
                    await services.sessions.bury(tenant, turn, ())
                await services.conversations.release(tenant, turn)
        for ids in services.histories.take(tenant):
            await delete_known(services, tenant, ids)
        await services.sessions.documents.forget_tenant(tenant)
