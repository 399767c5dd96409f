"""One request's tokens, whichever engines they come from.

An answer may have to change its engine: because the dispatcher knows a better place, because its engine died, or
because a step of it failed there. All are the same to it: all tokens so far are known here, the KV of nearly all of
them lies in the store, and another engine goes on from there. Who reads along sees a pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Final

import structlog
from msgspec.structs import replace

from engine import (
    Answer,
    EngineDiedError,
    EngineError,
    EnginePool,
    EngineProcess,
    Finished,
    Generate,
    ModelLoadError,
    Started,
    Tokens,
)
from gateway.scheduling.dispatcher import Dispatcher, Placement

MOST_DEATHS: Final = 2
"""A request whose engines died so often is what kills them."""
MOST_TRIES: Final = 7
"""Engines that it is sent to, those among them that were gone before they had it."""
WAIT: Final = 1.0
"""Seconds between two looks for room in an engine that has the model, when another could not load it."""
MOST_WAITS: Final = 120
"""Such looks."""
MOST_FAILURES: Final = 2
"""A request whose steps failed so often in engines that live on is what fails."""
PAUSE: Final = 0.05
"""Seconds until it is sent again when an engine was gone already, and twice as long each time: to hear of that, and for
what no process could be started with, files or memory, to be there again. Three seconds in all."""


log = structlog.get_logger()


class Relay:
    """Runs one request in the engine of its placement, and in the next one when that gives it up."""

    def __init__(
        self,
        pool: EnginePool,
        dispatcher: Dispatcher,
        placement: Placement,
        request: Generate,
        number: Callable[[], int],
    ) -> None:
        """`number` gives each engine a number of its own for the request."""
        self.deaths = 0
        """Engines that died of it, or while they had it."""
        self.blame = 0.0
        """Its share in these deaths: 1 for an engine that had no other request."""
        self._tries = 0
        self._waits = 0
        self._failures = 0
        self._pool = pool
        self._dispatcher = dispatcher
        self._placement = placement
        self._request = request
        self._number = number
        self._drawn: list[int] = []
        self._current: tuple[EngineProcess, int] | None = None
        self._aborted = asyncio.Event()
        self.traces: list[tuple[EngineProcess, int]] = []
        """Where it left cells, and under which numbers."""

    async def run(self) -> AsyncGenerator[Answer, None]:
        """What engines say of it: `Started` once, all tokens once, `Finished` last. Raises EngineError."""
        first = True
        while True:
            try:
                async with aclosing(self._stretch()) as messages:
                    async for message in messages:
                        if isinstance(message, Finished) and (message.reason == "moved" or self._endures(message)):
                            break
                        if first or not isinstance(message, Started):
                            yield message
                        first = False
                        if isinstance(message, Finished):
                            return
            except (EngineDiedError, ModelLoadError) as error:
                await self._survive(error)
            finally:
                self._current = self._placement.leave = None
            if self._aborted.is_set() or self._left == 0:
                yield Finished(self._request.request, "aborted" if self._aborted.is_set() else "length")
                return
            self._dispatcher.arrive(self._placement)

    async def _survive(self, error: EngineDiedError | ModelLoadError) -> None:
        """Go on after an engine's death, or where there is one that is loaded; raise what nothing can be done about.

        Nothing can when it is the request that kills them, or when none of them can load the model.
        """
        if isinstance(error, ModelLoadError):  # for want of memory: another engine may have it, and be full
            self._waits += 1
            if self._waits >= MOST_WAITS or not any(engine.loaded for engine in self._pool.engines):
                raise error
            await self._pause(WAIT)
            return
        self._tries += 1
        if error.requests:
            self.deaths += 1
            self.blame += 1 / error.requests
        if self.deaths >= MOST_DEATHS or self._tries >= MOST_TRIES:
            raise error
        if not error.requests:
            await self._pause(PAUSE * 2 ** (self._tries - 1))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._aborted.wait(), seconds)

    def _endures(self, end: Finished) -> bool:
        """Whether it goes on after a step that failed without anybody's fault."""
        if end.reason != "failed" or end.code:
            return False
        self._failures += 1
        log.error("step failed", engine=self._placement.engine.name, reason=end.detail)
        return self._failures < MOST_FAILURES

    def abort(self) -> None:
        """End it within a step; `Finished` still comes."""
        self._aborted.set()
        if self._current is not None:
            engine, number = self._current
            with suppress(EngineError):  # its end is told by `run`
                engine.abort(number)

    @property
    def _left(self) -> int:
        """Tokens that may still come."""
        return self._request.max_tokens - len(self._drawn)

    async def _stretch(self) -> AsyncGenerator[Answer, None]:
        """From where it stands to its end, or to that of its stay in this engine."""
        engine, number = self._placement.engine, self._number()
        await self._pool.start(engine)
        request = replace(
            self._request,
            request=number,
            tokens=[*self._request.tokens, *self._drawn],
            max_tokens=self._left,
            generated=len(self._drawn),
        )
        self._current = engine, number
        self.traces.append(self._current)
        if self._aborted.is_set():
            yield Finished(number, "aborted")
            return
        async with aclosing(self._pool.generate(engine, request)) as messages:
            async for message in messages:
                if self._placement.leave is None and self._placement.demand.stored:
                    self._placement.leave = self._suspend
                if isinstance(message, Tokens):
                    self._drawn += message.ids
                    self._placement.streaming = True
                yield message

    def _suspend(self) -> None:
        if self._current is not None:
            engine, number = self._current
            with suppress(EngineError):
                engine.suspend(number)
