"""Teaches the cost model this machine's speed before the first request, where nothing is known about it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Final

import structlog

from engine import Engine, Finished, Generate, Sampling
from gateway.responses.services import Services

SECONDS: Final = 10.0
"""Maximum seconds of the whole test."""
LOADS: Final = (1, 2, 4, 8, 16)
"""Numbers of concurrent answers that are tried."""
PROMPT: Final = 4
"""Tokens of a prompt: few, so that a step of prompts is short, too, and a request waits for no longer one."""
ANSWER: Final = 128
"""Maximum tokens of an answer; then another one begins."""
RANDOM: Final = Sampling(temperature=1.5, top_p=1.0, top_k=40, seed=0)
"""Sampling that seldom ends an answer."""
SCOPE: Final = "self-test"

log = structlog.get_logger()


class SelfTest:
    """Generates answers to random tokens in the loaded engines, on one engine, on two and so on.

    The steps are those of real answers, and the cost model learns from them in the same way, trials of step widths
    included. Nothing is stored, and the cells are dropped at the end.
    """

    def __init__(self, services: Services) -> None:
        """Test the engines of `services`, unless something has been measured or learned already."""
        self._services = services
        self._needed = not services.costs.measured and services.costs.samples == 0
        self._random = random.Random(0)  # noqa: S311 - tokens of a measurement

    async def run(self) -> None:
        """Run the test if it is needed and an engine is loaded. Raises EngineError in an ExceptionGroup."""
        engines = [engine for engine in self._services.pool.engines if engine.loaded]
        if not self._needed or not engines:
            return
        started, before = time.monotonic(), self._services.costs.samples
        outcome = "interrupted by a request"
        try:
            counts = range(1, len(engines) + 1)
            trials = [(engines[:count], load) for count in counts for load in LOADS if load >= count]
            for used, load in trials:
                await self._try(used, load, SECONDS / len(trials))
            outcome = "done"
        finally:
            steps, taken = self._services.costs.samples - before, round(time.monotonic() - started, 1)
            log.info("self-test", outcome=outcome, steps=steps, seconds=taken)

    async def _try(self, engines: Sequence[Engine], load: int, seconds: float) -> None:
        """Generate `load` answers at a time for `seconds`, spread over `engines`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for number in range(load):
                    group.create_task(self._answer(engines[number % len(engines)], load))

    async def _answer(self, engine: Engine, load: int) -> None:
        """Generate one answer after the other until cancelled, within a share of the engine's cells."""
        pool = self._services.pool
        length = min(ANSWER, engine.cells // load - PROMPT)
        failed = length < 1
        while not failed:
            number = pool.number()
            request = Generate(number, self._prompt(), length, RANDOM, SCOPE, stored=False)
            try:
                async with aclosing(pool.generate(engine, request)) as messages:
                    async for message in messages:
                        failed = isinstance(message, Finished) and not message.computed
            finally:
                pool.forget(engine, [number])

    def _prompt(self) -> list[int]:
        size = self._services.model.tokens.size
        return [self._random.randrange(size) for _ in range(PROMPT)]
