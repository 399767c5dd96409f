"""All engines of this machine: started when first needed, given threads, mended when they die, unloaded when idle.

The gateway's only door to engines. Nothing here says that an engine is a process on this host: another transport can
stand behind the same face.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

import structlog

from engine.errors import EngineDiedError, EngineError, ModelLoadError
from engine.messages import Discard, Finished, Generate, Stepped, StoreUsed, Tokens, WorkerConfig
from engine.process import Answer, EngineProcess, State
from engine.reloads import Reloads
from engine.resources import Meter, Usage
from engine.shares import CoreShares

BACKOFF: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the first, second, … restart of an engine that dies without having answered anything between."""
COMPUTED: Final = ("stop", "length", "moved")
"""Ends of requests for which an engine has computed something: it is not one that dies from the start."""
LOAD_SECONDS: Final = 120.0
"""How long a load may take before it counts as hung: gigabytes from a slow disk."""
ROUND: Final = 1.0
"""Seconds between two rounds of the keeper, who looks for idle and hung engines."""
SAMPLE_ROUNDS: Final = 5
"""Rounds between two readings of memory and processor time."""
WALK_ROUNDS: Final = 60
"""Rounds between two walks through the pages of busy engines, which take tens of milliseconds from their answers."""

log = structlog.get_logger("engine")


class EnginePool:
    """Keeps `count` engines within `cores` threads."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        count: int,
        cores: int,
        idle_unload: float = 0.0,
        on_change: Callable[[EngineProcess], None] = lambda _: None,
        on_step: Callable[[Stepped], None] = lambda _: None,
        on_store: Callable[[StoreUsed], None] = lambda _: None,
    ) -> None:
        """`on_change` is called after every change of an engine's state, `on_step` after every step of any of them.

        An engine idle for `idle_unload` seconds gives its memory back (0: never). Starts nothing. Raises ValueError.
        """
        if not 1 <= count <= cores:
            raise ValueError(f"{count} engines need at least as many cores, and there are {cores}")
        self.engines = tuple(
            EngineProcess(
                str(i), config, on_change=self._changed, on_threads=self._confirmed, on_step=on_step, on_store=on_store
            )
            for i in range(count)
        )
        names = [engine.name for engine in self.engines]
        self.restarts = dict.fromkeys(names, 0)
        """Starts after a crash, by engine: by the pool itself, or by a request that could not wait for that."""
        self.unloads = dict.fromkeys(names, 0)
        """Times that it was stopped for being idle, by engine."""
        self.usage = dict.fromkeys(names, Usage())
        """What each took of the machine when it was last looked at; processor time in all its lives."""
        self._meters = {name: Meter() for name in names}
        self._crashed: set[str] = set()
        """Those whose next start is a restart."""
        self.stores = config.cache is not None
        """Whether KV goes to a store, from where another engine can take it."""
        self._plan = config.plan
        self._idle_unload = idle_unload
        self._shares = CoreShares(cores, self._set_threads)
        self._by_name = {engine.name: engine for engine in self.engines}
        self._on_change = on_change
        self._failures = dict.fromkeys(names, 0)
        self._reloads = Reloads(Path(config.model))
        self._unloadable = ""
        """Why the model could not be loaded, until an engine has it."""
        self._mending: dict[str, asyncio.Task[None]] = {}
        self._warming: set[asyncio.Task[None]] = set()
        self._closing = False
        self._numbers = itertools.count()

    @property
    def threads(self) -> int:
        """Threads that may compute at this moment, in all."""
        return self._shares.held

    @property
    def failure(self) -> str:
        """Why no engine can serve, in words; empty while one can."""
        states = {engine.state for engine in self.engines}
        if states & {State.IDLE, State.BUSY}:
            return ""
        return self._unloadable or (self.engines[0].reason if states == {State.FAILED} else "")

    async def generate(self, engine: EngineProcess, request: Generate) -> AsyncGenerator[Answer, None]:
        """Run a request on `engine`, started first where needed. Raises EngineError."""
        await self.start(engine)
        async with aclosing(engine.generate(request)) as messages:
            async for message in messages:
                if isinstance(message, Tokens) or (isinstance(message, Finished) and message.reason in COMPUTED):
                    self._failures[engine.name] = 0
                yield message

    async def start(self, engine: EngineProcess) -> None:
        """Have `engine` loaded. Raises EngineError.

        A model that it could not load is not tried again at once, nor by a request while another engine has it.
        """
        if engine.load_failed and (self._reloads.refuses(engine.name) or any(e.loaded for e in self.engines)):
            raise ModelLoadError(engine.reason)
        await self._start(engine)

    async def _start(self, engine: EngineProcess) -> None:
        if self._closing:  # who goes on after an engine ended must not bring up another that nobody stops
            raise EngineDiedError(f"engine {engine.name} is not started any more: the pool is closed")
        await engine.start()

    async def discard(self, tokens: list[int], scope: str, *, public: int, start: int) -> bool:
        """Have all engines drop the cells and queued blocks of `tokens` beyond the first `start`.

        The first `public` tokens are everybody's and stay. Returns False if an engine may still store a block.
        """
        number = next(self._numbers)
        message = Discard(number, tokens, scope, public, start)
        return all(await asyncio.gather(*(engine.discard(message) for engine in self.engines)))

    def warm(self, engine: EngineProcess) -> None:
        """Have `engine` loaded while others do without it; whether that works is seen when it is needed."""
        self._soon(self.start(engine))

    def _soon(self, start: Coroutine[None, None, None]) -> None:
        async def load() -> None:
            with suppress(EngineError):
                await start

        task = asyncio.get_running_loop().create_task(load())
        self._warming.add(task)
        task.add_done_callback(self._warming.discard)

    async def keep(self) -> None:
        """Look after the engines until cancelled: hung ones are killed, idle ones unloaded, what they use is read.

        A model that could not be loaded is tried again when its file has changed, or after a while.
        """
        for round_ in itertools.count():
            now = time.monotonic()
            for engine in self.engines:
                self._end_if_hung(engine, now)
            self._load_again()
            await asyncio.gather(*(self._unload(engine) for engine in self.engines if self._is_spare(engine, now)))
            if round_ % SAMPLE_ROUNDS == 0:
                busy = any(engine.state is State.BUSY for engine in self.engines)
                pids = {engine.name: engine.pid for engine in self.engines}  # here: they change while a thread looks
                await asyncio.to_thread(self._sample, pids, walk=not busy or round_ % WALK_ROUNDS == 0)
            await asyncio.sleep(ROUND)

    async def close(self) -> None:
        """Stop every engine; what they still owe fails."""
        self._closing = True
        for task in (*self._mending.values(), *self._warming):
            task.cancel()
        await asyncio.gather(*(engine.stop() for engine in self.engines))

    def _end_if_hung(self, engine: EngineProcess, now: float) -> None:
        if engine.state is State.LOADING and now - engine.since > LOAD_SECONDS:
            engine.kill(f"it did not load within {LOAD_SECONDS:.0f} s")
        # Without threads it may not step: then its silence is not its own. Its longest step is one of prompts alone.
        # One that has them with nothing to do has not answered that they are taken back: others wait for these.
        deadline = self._plan.deadline()
        if engine.threads and now - engine.heard > deadline:
            engine.kill(f"it did not answer within {deadline:.0f} s")

    def _is_spare(self, engine: EngineProcess, now: float) -> bool:
        return engine.state is State.IDLE and 0 < self._idle_unload <= now - engine.since

    def _load_again(self) -> None:
        failed = [engine.name for engine in self.engines if engine.state is State.FAILED and engine.load_failed]
        for name in self._reloads.due(failed):
            self._soon(self._start(self._by_name[name]))

    async def _unload(self, engine: EngineProcess) -> None:
        if engine.state is not State.IDLE:  # a request came a moment ago
            return
        self.unloads[engine.name] += 1
        await engine.stop()

    def _sample(self, pids: Mapping[str, int | None], *, walk: bool) -> None:
        for name, pid in pids.items():
            self.usage[name] = self._meters[name].read(pid, walk=walk)

    def _set_threads(self, name: str, threads: int) -> None:
        with suppress(EngineError):  # it just died, and its end will be told
            self._by_name[name].set_threads(threads)

    def _changed(self, engine: EngineProcess) -> None:
        if engine.state is State.IDLE:
            self._unloadable = ""
            self._reloads.loaded(engine.name)
        if engine.state is State.LOADING and engine.name in self._crashed:
            self._crashed.remove(engine.name)
            self.restarts[engine.name] += 1
        if engine.state in (State.FAILED, State.STOPPED):
            self._shares.lost(engine.name)
            if engine.state is State.FAILED and not self._closing:
                self._mend(engine)
        else:
            # With the most to do first: it gets the thread that cannot be split.
            busy = sorted((e for e in self.engines if e.state is State.BUSY), key=lambda e: -e.requests)
            self._shares.work([e.name for e in busy])
        self._on_change(engine)

    def _confirmed(self, engine: EngineProcess) -> None:
        self._shares.confirm(engine.name, engine.threads)

    def _mend(self, engine: EngineProcess) -> None:
        failures = self._failures[engine.name]
        self._failures[engine.name] = failures + 1
        delay = BACKOFF[min(failures, len(BACKOFF) - 1)]
        if (timer := self._mending.pop(engine.name, None)) is not None:
            timer.cancel()  # of its last end, after which a request could not wait for it
        if engine.load_failed:
            log.error("model cannot be loaded", engine=engine.name, reason=engine.reason)
            self._unloadable = engine.reason
            self._reloads.failed(engine.name, pause=delay)
        else:
            log.error("engine failed", engine=engine.name, reason=engine.reason, again_in_seconds=delay)
            self._crashed.add(engine.name)
            self._mending[engine.name] = asyncio.get_running_loop().create_task(self._restart(engine, delay))

    async def _restart(self, engine: EngineProcess, delay: float) -> None:
        await asyncio.sleep(delay)
        if engine.state is State.FAILED:
            with suppress(EngineError):  # it failed again: its end called for the next try
                await self._start(engine)
