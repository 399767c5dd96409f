"""All engines of this machine: started when first needed, given their threads, mended when they die.

The gateway's only door to engines. Nothing here says that an engine is a process on this host: another transport can
stand behind the same face.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Final

from engine.errors import EngineError
from engine.messages import Finished, Generate, Started, Tokens
from engine.process import EngineProcess, State
from engine.shares import CoreShares
from engine.worker import WorkerConfig

BACKOFF: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the first, second, … restart of an engine that dies without having answered anything between."""


class EnginePool:
    """Keeps `count` engines within `cores` threads."""

    def __init__(
        self, config: WorkerConfig, *, count: int, cores: int, on_change: Callable[[EngineProcess], None] | None = None
    ) -> None:
        """`on_change` is called after every change of an engine's state. Starts nothing. Raises ValueError."""
        if not 1 <= count <= cores:
            raise ValueError(f"{count} engines need at least as many cores, and there are {cores}")
        self.engines = tuple(
            EngineProcess(str(i), config, on_change=self._changed, on_threads=self._confirmed) for i in range(count)
        )
        self.restarts = dict.fromkeys((e.name for e in self.engines), 0)
        """Restarts after a crash, by engine."""
        self._shares = CoreShares(cores, self._set_threads)
        self._by_name = {engine.name: engine for engine in self.engines}
        self._on_change = on_change
        self._failures = dict.fromkeys(self.restarts, 0)
        self._mending: dict[str, asyncio.Task[None]] = {}
        self._closing = False

    @property
    def threads(self) -> int:
        """Threads that may compute at this moment, in all."""
        return self._shares.held

    async def generate(
        self, engine: EngineProcess, request: Generate
    ) -> AsyncGenerator[Started | Tokens | Finished, None]:
        """Run a request on `engine`, started first where needed. Raises EngineError."""
        await engine.start()
        async with aclosing(engine.generate(request)) as messages:
            async for message in messages:
                self._failures[engine.name] = 0
                yield message

    async def close(self) -> None:
        """Stop every engine; what they still owe fails."""
        self._closing = True
        for task in self._mending.values():
            task.cancel()
        await asyncio.gather(*(engine.stop() for engine in self.engines))

    def _set_threads(self, name: str, threads: int) -> None:
        with suppress(EngineError):  # it just died, and its end will be told
            self._by_name[name].set_threads(threads)

    def _changed(self, engine: EngineProcess) -> None:
        if engine.state in (State.FAILED, State.STOPPED):
            self._shares.lost(engine.name)
            if engine.state is State.FAILED and not self._closing:
                self._mending[engine.name] = asyncio.get_running_loop().create_task(self._mend(engine))
        else:
            self._shares.work([e.name for e in self.engines if e.state is State.BUSY])
        if self._on_change is not None:
            self._on_change(engine)

    def _confirmed(self, engine: EngineProcess) -> None:
        self._shares.confirm(engine.name, engine.threads)

    async def _mend(self, engine: EngineProcess) -> None:
        failures = self._failures[engine.name]
        self._failures[engine.name] = failures + 1
        await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF) - 1)])
        if engine.state is State.FAILED:
            self.restarts[engine.name] += 1
            with suppress(EngineError):  # it failed again: its end called for the next try
                await engine.start()
