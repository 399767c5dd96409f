"""The tokens of one request, from one engine or several in succession.

A response changes its engine if the dispatcher finds a better placement, if the engine dies, or if a step fails there.
All three are handled alike: the gateway has all tokens so far, the store has the KV of nearly all of them, and another
engine continues from there. The client sees a pause.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog
from msgspec.structs import replace

from engine import (
    Answer,
    Engine,
    EngineDiedError,
    EnginePool,
    Finished,
    Generate,
    ModelLoadError,
    Started,
    Tokens,
)
from gateway.responses.cancellation import Cancellation
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.placement import Placement

MOST_DEATHS: Final = 2
"""Deaths of engines that had received it, after which a request counts as their cause and fails."""
MOST_TRIES: Final = 7
"""Failed attempts after which a request fails, counting engines that died before they received the request."""
WAIT: Final = 1.0
"""Seconds between two attempts to place a request in a loaded engine after another engine failed to load the model."""
MOST_WAITS: Final = 120
"""Maximum number of such attempts."""
MOST_FAILURES: Final = 2
"""Failed steps, in engines that survive, after which a request fails."""
PAUSE: Final = 0.05
"""Seconds before the first retry after an engine died before it received the request; each further delay is twice as
long. In this time the gateway notices the death, and files or memory that a new process needs become available again.
The delays add up to three seconds."""


log = structlog.get_logger()


class Relay:
    """Runs one request in the engine of its placement, and continues in another engine if that one fails."""

    def __init__(self, pool: EnginePool, dispatcher: Dispatcher, request: Generate, cancellation: Cancellation) -> None:
        """Run `request`, under a new number in each engine, until it ends or `cancellation` says so."""
        self.deaths = 0
        """Engines that died while they ran this request, as their messages show."""
        self.blame = 0.0
        """This request's share in these deaths: 1 for an engine that ran no other request."""
        self._tries = 0
        self._waits = 0
        self._failures = 0
        self._pool = pool
        self._dispatcher = dispatcher
        self._request = request
        self._generated: list[int] = []
        self._current: tuple[Engine, int] | None = None
        self._cancellation = cancellation
        cancellation.add_callback(self._abort)
        self.traces: list[tuple[Engine, int]] = []
        """Engines in which the request left KV cells, with its number there."""

    async def run(self, placement: Placement) -> AsyncGenerator[Answer, None]:
        """Start at `placement`. Yield `Started` once, each token once, and `Finished` last. Raises EngineError."""
        first = True
        while True:
            engine, number = placement.engine, self._pool.number()
            received = False
            try:
                await self._pool.start(engine)
                self._current = engine, number
                self.traces.append(self._current)
                if self._cancellation.cause:
                    break
                async with aclosing(self._pool.generate(engine, self._remaining(number))) as messages:
                    async for message in messages:
                        received = True
                        self._dispatcher.started(placement, number)
                        if isinstance(message, Tokens):
                            self._generated += message.ids
                            self._dispatcher.streams(placement)
                        if isinstance(message, Finished) and self._continues(engine, message):
                            break
                        if first or not isinstance(message, Started):
                            yield message
                        first = False
                        if isinstance(message, Finished):
                            return
            except (EngineDiedError, ModelLoadError) as error:
                await self._recover(error, received=received)
            finally:
                self._current = None
                self._dispatcher.stopped(placement)
            if self._cancellation.cause or self._left == 0:
                break
            placement = self._dispatcher.move(placement)
        yield Finished(self._request.request, "aborted" if self._cancellation.cause else "length")

    async def _recover(self, error: EngineDiedError | ModelLoadError, *, received: bool) -> None:
        """Prepare a retry after an engine died or could not load the model; raise `error` if a retry is pointless.

        A retry is pointless if the request itself crashes engines, or if no engine can load the model. An engine that
        had not `received` the request may have been dead already: several can be killed at the same time.
        """
        if isinstance(error, ModelLoadError):  # out of memory: another engine may be loaded but full
            self._waits += 1
            if self._waits >= MOST_WAITS or not any(engine.loaded for engine in self._pool.engines):
                raise error
            await self._cancellation.wait(WAIT)
            return
        self._tries += 1
        if error.requests:
            self.deaths += received
            self.blame += 1 / error.requests
        if self.deaths >= MOST_DEATHS or self._tries >= MOST_TRIES:
            raise error
        if not (error.requests and received):
            await self._cancellation.wait(PAUSE * 2 ** (self._tries - 1))

    def _continues(self, engine: Engine, end: Finished) -> bool:
        """Return whether the request moves, or retries after a failed step that it did not cause; count the failure."""
        if end.reason != "failed" or end.code:
            return end.reason == "moved"
        self._failures += 1
        log.error("step failed", engine=engine.name, reason=end.detail)
        return self._failures < MOST_FAILURES

    def _abort(self) -> None:
        """End the request within one step; `run` still yields `Finished`."""
        if self._current is not None:
            self._pool.abort(*self._current)

    @property
    def _left(self) -> int:
        """Number of tokens that may still be generated."""
        return self._request.max_tokens - len(self._generated)

    def _remaining(self, number: int) -> Generate:
        """Return the rest of the request, under a new number."""
        return replace(
            self._request,
            request=number,
            tokens=[*self._request.tokens, *self._generated],
            max_tokens=self._left,
            generated=len(self._generated),
        )
