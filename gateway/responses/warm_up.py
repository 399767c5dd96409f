"""Loads engines before the first request, and computes the beginning that all first prompts share."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, Final, NamedTuple

import structlog

from engine import Engine, Finished, Generate, Sampling, common_prefix
from gateway.auth.principal import ANONYMOUS
from gateway.config.machine import available_memory
from gateway.conversations.prompt_builder import unpacked
from gateway.prompts.messages import Encode
from gateway.responses.services import Services

USERS: Final = 2
"""Concurrent users for whom enough engines are loaded."""
OTHERS: Final = ("x", "y")
"""Two messages whose prompts differ where the user's text begins."""
GREEDY: Final = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0)

log = structlog.get_logger()


class Head(NamedTuple):
    """The beginning of the prompts of new conversations."""

    tokens: list[int]
    public: int
    """Number of leading tokens that only the operator's instructions determine."""


class WarmUp:
    """Loads the engines of the first users one after the other, within the memory that is available.

    Each engine computes the head of the first prompts: what the chat template and the operator's instructions put
    before the user's text. The first engine's KV is stored, so that the others fetch it. Engines that are not used then
    are unloaded after `idle_unload`, like any others.
    """

    def __init__(self, services: Services) -> None:
        """Warm up the engines of `services`."""
        self._services = services

    async def run(self) -> None:
        """Load and compute. Raises EngineError, ApiError or OSError."""
        services = self._services
        count = self._count()
        if count == 0:
            log.warning("engines not preloaded", reason="too little memory is available")
        head = await self._head() if count else None
        for engine in services.pool.engines[:count]:
            await services.pool.start(engine)
            if head is not None and head.tokens:
                await self._compute(engine, head)

    def _count(self) -> int:
        """Return the number of engines that the first users need and that fit into the available memory."""
        services = self._services
        model = services.costs.model
        wanted = max(model.engines(users, working=0) for users in range(1, USERS + 1))
        available = available_memory()
        fitting = (n for n in range(1, wanted + 1) if services.model.footprint(n) <= available)
        return max(fitting, default=0)

    async def _head(self) -> Head:
        """Return the head of the prompts of conversations that begin now. Raises ApiError.

        With API keys there are several tenants, and only the operator's part is shared by all of them.
        """
        services = self._services
        began = int(services.clock())
        jobs = [Encode(messages=[_message(text)], began=began, answer=False) for text in OTHERS]
        one, other = [await services.prompts.encode(job, user="") for job in jobs]
        ids = unpacked(one.ids)
        tokens = ids[: common_prefix(ids, unpacked(other.ids))]
        public = common_prefix(unpacked(one.operator), tokens)
        return Head(tokens[:public] if services.registry.needs_keys else tokens, public)

    async def _compute(self, engine: Engine, head: Head) -> None:
        pool = self._services.pool
        request = Generate(pool.number(), head.tokens, 0, GREEDY, ANONYMOUS, public=head.public, stored=pool.stores)
        async with aclosing(pool.generate(engine, request)) as messages:
            async for message in messages:
                if isinstance(message, Finished) and not message.computed:
                    log.warning("prompt not computed ahead", engine=engine.name, reason=message.detail)


def _message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}
