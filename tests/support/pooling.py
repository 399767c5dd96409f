"""Helpers that run requests on the engines of a pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine import (
    Engine,
    EnginePool,
    Finished,
    Generate,
    Sampling,
    Tokens,
)
from engine.process import EngineProcess

ENDLESS = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias={65: 1000.0})
PROMPT = list(range(40, 90))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds. The timeout of the test limits the wait."""
    while not condition():  # noqa: ASYNC110 - the state has no event to wait for
        await asyncio.sleep(0.001)


def processes(pool: EnginePool) -> tuple[EngineProcess, ...]:
    """The processes behind the pool's engines."""
    return pool._engines


async def run(pool: EnginePool, engine: Engine, request: int, limit: int) -> tuple[int, str]:
    """Run a request and check the thread budget on every message. Returns (number of new tokens, reason)."""
    await pool.start(engine)
    count, reason = 0, ""
    async for message in pool.generate(engine, Generate(request, PROMPT, limit, ENDLESS, "a")):
        assert pool.threads <= 2
        match message:
            case Tokens():
                count += len(message.ids)
            case Finished():
                reason = message.reason
    return count, reason
