"""The engine pool: starts engines when first needed, assigns threads, restarts crashed engines, unloads idle ones.

The gateway reads engines through handles (`Engine`) and acts on them only through the pool. This interface does not
require engines to be processes on this host, so another transport can be added behind it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from engine.errors import EngineDiedError, EngineError, ModelLoadError
from engine.handle import Engine
from engine.learning import LearnedStep
from engine.messages import Answer, Discard, Generate, Stepped, StoreUsed, WorkerConfig
from engine.process import EngineProcess, State
from engine.reloads import Reloads
from engine.resources import Meter, Usage
from engine.shares import CoreShares

BACKOFF: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the first, second, … restart of an engine that crashes without computing anything in between."""
LOAD_SECONDS: Final = 120.0
"""Maximum seconds of a load before the engine counts as hung: long enough for gigabytes from a slow disk."""
MAINTENANCE_SECONDS: Final = 1.0
"""Seconds between two rounds of `run`."""
SAMPLE_ROUNDS: Final = 5
"""Rounds between two readings of memory and processor time."""
PSS_ROUNDS: Final = 60
"""Rounds between two readings of the PSS while engines are busy. A reading delays their steps by tens of ms."""

log = structlog.get_logger("engine")


class EnginePool:
    """Runs up to `count` engines, which compute with at most `cores` threads in total."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        count: int,
        cores: int,
        idle_unload: float = 0.0,
        on_change: Callable[[Engine], None] = lambda _: None,
        on_step: Callable[[Stepped], None] = lambda _: None,
        on_store: Callable[[StoreUsed], None] = lambda _: None,
        learned: Callable[[], list[LearnedStep]] = list,
    ) -> None:
        """Create the engines without starting them. Raises ValueError if `count` is not between 1 and `cores`.

        `on_change` is called after every change of an engine's state, `on_step` after every step, `on_store` after
        store operations. Engines idle for `idle_unload` seconds are unloaded (0: never). `learned` returns the step
        times with which an engine starts.
        """
        if not 1 <= count <= cores:
            raise ValueError(f"the number of engines must be between 1 and {cores} (cores), not {count}")
        self._engines = tuple(
            EngineProcess(
                str(i),
                config,
                on_change=self._changed,
                on_threads=self._confirmed,
                on_step=on_step,
                on_store=on_store,
                learned=learned,
            )
            for i in range(count)
        )
        self.engines: tuple[Engine, ...] = self._engines
        names = [engine.name for engine in self._engines]
        self.restarts = dict.fromkeys(names, 0)
        """Number of starts after a crash, by engine: scheduled by the pool, or earlier, for a request."""
        self.unloads = dict.fromkeys(names, 0)
        """Number of unloads for being idle, by engine."""
        self.usage = dict.fromkeys(names, Usage())
        """Last reading of memory and processor time, by engine. Processor time includes earlier processes."""
        self._meters = {name: Meter() for name in names}
        self._crashed: set[str] = set()
        """Engines whose next start counts as a restart."""
        self.stores = config.cache is not None
        """Whether KV is stored, so that another engine can fetch it."""
        self._cost_model = config.cost_model
        self._idle_unload = idle_unload
        self._shares = CoreShares(cores, self._set_threads)
        self._by_name = {engine.name: engine for engine in self._engines}
        self._on_change = on_change
        self._failures = dict.fromkeys(names, 0)
        self._reloads = Reloads(Path(config.model))
        self._unloadable = ""
        """Why the model could not be loaded; empty once an engine has loaded it."""
        self._restart_tasks: dict[str, asyncio.Task[None]] = {}
        self._load_tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._numbers = itertools.count()

    @property
    def threads(self) -> int:
        """Total threads that engines may be using at this moment."""
        return self._shares.held

    @property
    def failure(self) -> str:
        """Why no engine can serve; empty while one can."""
        states = {engine.state for engine in self._engines}
        if states & {State.IDLE, State.BUSY}:
            return ""
        return self._unloadable or (self._engines[0].reason if states == {State.FAILED} else "")

    def number(self) -> int:
        """Return a new number for a request."""
        return next(self._numbers)

    def generate(self, engine: Engine, request: Generate) -> AsyncGenerator[Answer, None]:
        """Run a request on `engine`, which is loaded, and yield its messages, `Finished` last. Raises EngineDiedError.

        Closing the generator early aborts the request.
        """
        return self._by_name[engine.name].generate(request)

    def abort(self, engine: Engine, request: int) -> None:
        """Abort a request: `generate` then yields its `Finished`. Does nothing if the engine is not running."""
        with suppress(EngineDiedError):
            self._by_name[engine.name].abort(request)

    def suspend(self, engine: Engine, request: int) -> None:
        """Stop a request and store its KV: `generate` then yields `Finished` with `moved`.

        Does nothing if the engine is not running.
        """
        with suppress(EngineDiedError):
            self._by_name[engine.name].suspend(request)

    def forget(self, engine: Engine, requests: list[int]) -> None:
        """Drop the cells of ended requests. Does nothing if the engine is not running."""
        self._by_name[engine.name].forget(requests)

    async def start(self, engine: Engine) -> None:
        """Load `engine` if it is not loaded. Raises EngineError.

        After a failed load, ModelLoadError is raised at once for a while, and as long as another engine is loaded.
        """
        process = self._by_name[engine.name]
        if process.load_failed and (self._reloads.refuses(process.name) or any(e.loaded for e in self._engines)):
            raise ModelLoadError(process.reason)
        await self._start(process)

    async def _start(self, engine: EngineProcess) -> None:
        if self._closing:  # nothing would stop an engine that a retried request started now
            raise EngineDiedError(f"engine {engine.name} was not started: the engine pool is closed")
        await engine.start()

    async def discard(self, tokens: list[int], scope: str, *, public: int, start: int) -> bool:
        """Drop the cells and queued blocks of `tokens` after the first `start` in all engines.

        The first `public` tokens are shared by all tenants and stay. Returns False if an engine may still store a
        block.
        """
        message = Discard(self.number(), tokens, scope, public, start)
        return all(await asyncio.gather(*(engine.discard(message) for engine in self._engines)))

    def warm(self, engine: Engine) -> None:
        """Load `engine` in the background. Errors are ignored here: the first request for the engine gets them."""
        self._start_in_background(self.start(engine))

    def _start_in_background(self, start: Coroutine[None, None, None]) -> None:
        async def load() -> None:
            with suppress(EngineError):
                await start

        task = asyncio.get_running_loop().create_task(load())
        self._load_tasks.add(task)
        task.add_done_callback(self._load_tasks.discard)

    async def run(self) -> None:
        """Maintain the engines until cancelled: kill hung ones, unload idle ones, and read their resource usage.

        Failed loads are retried when the model file has changed, and after growing intervals.
        """
        for round_ in itertools.count():
            now = time.monotonic()
            for engine in self._engines:
                self._end_if_hung(engine, now)
            self._retry_loads()
            await asyncio.gather(*(self._unload(engine) for engine in self._engines if self._may_unload(engine, now)))
            if round_ % SAMPLE_ROUNDS == 0:
                busy = any(engine.state is State.BUSY for engine in self._engines)
                pids = {engine.name: engine.pid for engine in self._engines}  # on the loop, where they don't change
                await asyncio.to_thread(self._sample, pids, pss=not busy or round_ % PSS_ROUNDS == 0)
            await asyncio.sleep(MAINTENANCE_SECONDS)

    async def close(self) -> None:
        """Stop all engines. Their running requests fail."""
        self._closing = True
        for task in (*self._restart_tasks.values(), *self._load_tasks):
            task.cancel()
        await asyncio.gather(*(engine.stop() for engine in self._engines))

    def _end_if_hung(self, engine: EngineProcess, now: float) -> None:
        if engine.state is State.LOADING and now - engine.since > LOAD_SECONDS:
            engine.kill(f"it did not load within {LOAD_SECONDS:.0f} s")
        # An engine without threads may not step, so it may be silent. An idle engine that still has threads has not
        # confirmed their revocation, and other engines wait for these threads.
        deadline = self._cost_model.deadline()
        if engine.threads and now - engine.active_at > deadline:
            engine.kill(f"it did not answer within {deadline:.0f} s")

    def _may_unload(self, engine: EngineProcess, now: float) -> bool:
        return engine.state is State.IDLE and 0 < self._idle_unload <= now - engine.since

    def _retry_loads(self) -> None:
        failed = [engine.name for engine in self._engines if engine.state is State.FAILED and engine.load_failed]
        for name in self._reloads.due(failed):
            self._start_in_background(self._start(self._by_name[name]))

    async def _unload(self, engine: EngineProcess) -> None:
        if engine.state is not State.IDLE:  # a request has just arrived
            return
        self.unloads[engine.name] += 1
        await engine.stop()

    def _sample(self, pids: Mapping[str, int | None], *, pss: bool) -> None:
        for name, pid in pids.items():
            self.usage[name] = self._meters[name].read(pid, pss=pss)

    def _set_threads(self, name: str, threads: int) -> None:
        with suppress(EngineError):  # the engine has just died; `_changed` follows
            self._by_name[name].set_threads(threads)

    def _changed(self, engine: EngineProcess) -> None:
        if engine.productive:
            self._failures[engine.name] = 0
        if engine.state is State.IDLE:
            self._unloadable = ""
            self._reloads.loaded(engine.name)
        if engine.state is State.LOADING and engine.name in self._crashed:
            self._crashed.remove(engine.name)
            self.restarts[engine.name] += 1
        if engine.state in (State.FAILED, State.STOPPED):
            self._shares.lost(engine.name)
            if engine.state is State.FAILED and not self._closing:
                self._recover(engine)
        else:
            # The engine with the most requests comes first, and gets the threads that don't divide evenly.
            busy = sorted((e for e in self._engines if e.state is State.BUSY), key=lambda e: -e.requests)
            self._shares.work([e.name for e in busy])
        self._on_change(engine)

    def _confirmed(self, engine: EngineProcess) -> None:
        self._shares.confirm(engine.name, engine.threads)

    def _recover(self, engine: EngineProcess) -> None:
        failures = self._failures[engine.name]
        self._failures[engine.name] = failures + 1
        delay = BACKOFF[min(failures, len(BACKOFF) - 1)]
        if (timer := self._restart_tasks.pop(engine.name, None)) is not None:
            timer.cancel()  # from the previous failure, after which a request started the engine first
        if engine.load_failed:
            log.error("model cannot be loaded", engine=engine.name, reason=engine.reason)
            self._unloadable = engine.reason
            self._reloads.failed(engine.name, pause=delay)
        else:
            log.error("engine failed", engine=engine.name, reason=engine.reason, again_in_seconds=delay)
            self._crashed.add(engine.name)
            self._restart_tasks[engine.name] = asyncio.get_running_loop().create_task(self._restart(engine, delay))

    async def _restart(self, engine: EngineProcess, delay: float) -> None:
        await asyncio.sleep(delay)
        if engine.state is State.FAILED:
            with suppress(EngineError):  # the start failed again, and has scheduled the next restart
                await self._start(engine)
