"""What tests have the engines of a pool do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine import (
    EnginePool,
    EngineProcess,
    Finished,
    Generate,
    Sampling,
    Tokens,
)

ENDLESS = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias={65: 1000.0})
PROMPT = list(range(40, 90))


async def until(condition: Callable[[], bool]) -> None:
    """Look again until it holds; the test's own time-out bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for is the state itself, as users see it
        await asyncio.sleep(0.001)


async def run(pool: EnginePool, engine: EngineProcess, request: int, limit: int) -> tuple[int, str]:
    """(new tokens, reason), with the thread budget looked at on every message."""
    count, reason = 0, ""
    async for message in pool.generate(engine, Generate(request, PROMPT, limit, ENDLESS, "a")):
        assert pool.threads <= 2
        match message:
            case Tokens():
                count += len(message.ids)
            case Finished():
                reason = message.reason
    return count, reason
