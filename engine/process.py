"""The gateway's handle of one engine process: its start, its state, its threads and its end."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

import msgspec

from engine.autopsy import cause_of_death
from engine.child import environment, module_command
from engine.connection import Connection
from engine.errors import EngineDiedError, EngineError, ModelLoadError
from engine.learning import LearnedStep
from engine.messages import (
    Abort,
    Answer,
    Discard,
    Forget,
    FromEngine,
    Generate,
    LoadFailed,
    Ready,
    SetThreads,
    Stepped,
    StoreUsed,
    Suspend,
    ThreadsSet,
    WorkerConfig,
)

STOP_SECONDS: Final = 5.0
"""Maximum seconds for a process to exit after the gateway closed its socket, long enough for a step of a long prompt.
SIGKILL follows."""
EXIT_SECONDS: Final = 1.0
"""The same for a process that closed the socket itself. It has failed, and its threads may prevent it from exiting."""
SPAWN_FILES: Final = 12
"""Free file descriptors required to start a process: what a start needs temporarily, and a margin."""
MAX_LOAD_CRASHES: Final = 2
"""Consecutive crashes during a load after which the model counts as unloadable. SIGKILL from outside doesn't count."""
STDERR_BYTES: Final = 1 << 14
"""Bytes retained of the end of a process's stderr, to find the cause of a crash."""


class State(enum.Enum):
    """The states of an engine, as in the metric `engine_state` (docs/api.md)."""

    STOPPED = "stopped"
    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    FAILED = "failed"


class EngineProcess:
    """Spawns an engine process, passes requests to it, and handles its exit.

    The engine can be started and stopped any number of times. A start during a stop waits until the process has ended.
    """

    def __init__(
        self,
        name: str,
        config: WorkerConfig,
        *,
        on_change: Callable[[EngineProcess], None],
        on_threads: Callable[[EngineProcess], None] = lambda _: None,
        on_step: Callable[[Stepped], None] = lambda _: None,
        on_store: Callable[[StoreUsed], None] = lambda _: None,
        learned: Callable[[], list[LearnedStep]] = list,
    ) -> None:
        """The callbacks get changes of state, confirmed numbers of threads, steps and store operations.

        `learned` returns the learned step times, which each new process receives.
        """
        self.name = name
        self.state = State.STOPPED
        self.since = time.monotonic()
        """When the engine entered this state, in monotonic seconds."""
        self.threads = 0
        """Threads that the engine may be using: the number it confirmed last, or a larger one granted since."""
        self.cells = config.cells
        self.cells_used = 0
        self.load_seconds = 0.0
        """Duration of the last load, from spawning the process to `Ready`, of which:"""
        self.weights_seconds = self.context_seconds = 0.0
        self.reason = ""
        """Why the engine failed, for the log and /readyz."""
        self.load_failed = False
        """Whether the model could not be loaded, so that a restart alone would not help."""
        self._load_crashes = 0
        """Number of consecutive crashes during a load."""
        self._config = config
        self._on_change = on_change
        self._on_threads = on_threads
        self._on_step = on_step
        self._on_store = on_store
        self._learned = learned
        self._connection = Connection(name, on_message=self._handle, on_requests=self._requests_changed)
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._stopping = False
        self._disconnected = False
        """Whether the socket is closed while the process may still exist."""

    @property
    def pid(self) -> int | None:
        """The process id; None if no process runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def loaded(self) -> bool:
        """Whether the engine can compute now: the model is loaded, and the process is not about to exit."""
        return self.state in (State.IDLE, State.BUSY) and not (self._stopping or self._disconnected)

    @property
    def requests(self) -> int:
        """Number of unfinished requests."""
        return self._connection.requests

    @property
    def productive(self) -> bool:
        """Whether the process has computed something for a request, so that the next restart need not be delayed."""
        return self._connection.productive

    @property
    def active_at(self) -> float:
        """When the engine last sent a message, or received work while it had none: monotonic seconds."""
        return self._connection.active_at

    async def start(self) -> None:
        """Spawn the process if needed, and wait until it is ready. Raises ModelLoadError or EngineDiedError."""
        while (self._stopping or self._disconnected) and self._task is not None:
            await asyncio.shield(self._task)
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self.reason, self.load_failed, self._connection.productive = "", False, False
            self._set_state(State.LOADING)
            # In a separate task, because the first request may be cancelled while others wait for the same engine.
            # With an empty context, or the log would name that request in events hours later.
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        await asyncio.shield(self._ready)

    async def _run(self) -> None:
        """Run one process from spawn to exit."""
        stderr = bytearray()
        try:
            reader = await self._spawn()
        except OSError as error:
            self.reason = f"no process could be started: {error.strerror}"
        else:
            assert self._process is not None  # noqa: S101 - just spawned
            assert self._process.stderr is not None  # noqa: S101 - asked for as a pipe
            reading = asyncio.create_task(_read_end(self._process.stderr, stderr))
            try:
                await self._connection.listen(reader)
            except (ValueError, msgspec.MsgspecError):
                self.kill("it sent an invalid message")
            await self._wait_for_exit(self._process)
            await reading
        self._ended(bytes(stderr))

    async def _wait_for_exit(self, process: asyncio.subprocess.Process) -> None:
        """Wait until a process whose socket has closed exits, and kill it after a timeout."""
        self._disconnected = True
        seconds = STOP_SECONDS if self._stopping else EXIT_SECONDS
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)
        if process.returncode is None:
            self.kill("it closed its connection and did not exit")
            await process.wait()

    async def _spawn(self) -> asyncio.StreamReader:
        _require_files(SPAWN_FILES)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *module_command("engine.worker", str(theirs.fileno())),
                    pass_fds=[theirs.fileno()], start_new_session=True,
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
                    env=environment(),
                )  # fmt: skip
        except OSError:
            ours.close()
            raise
        reader = await self._connection.open(ours)
        self._connection.send(msgspec.structs.replace(self._config, learned=self._learned()))
        return reader

    def _handle(self, message: FromEngine) -> None:
        match message:
            case Stepped():
                self.cells_used = message.cells
                self._on_step(message)
            case StoreUsed():
                self._on_store(message)
            case ThreadsSet(threads=threads):
                self.threads = threads
                self._on_threads(self)
            case Ready():
                self._loaded(message)
            case LoadFailed(reason=reason):
                self.reason, self.load_failed = reason, True

    def _loaded(self, message: Ready) -> None:
        self.cells, self.load_seconds = message.cells, time.monotonic() - self.since
        self.weights_seconds, self.context_seconds = message.weights_seconds, message.context_seconds
        self._load_crashes = 0
        self._set_state(State.IDLE)
        if self._ready and not self._ready.done():
            self._ready.set_result(None)

    def _ended(self, stderr: bytes) -> None:
        status = self._process.returncode if self._process else None
        expected = self._stopping or status == 0
        outside = status == -signal.SIGKILL and not self.reason  # by the OOM killer or by hand: not the model's fault
        if not expected and not self.reason:
            self.reason = cause_of_death(status, stderr)
        if not expected and not outside and self.state is State.LOADING and self._process is not None:
            self._load_crashes += 1
            if self._load_crashes >= MAX_LOAD_CRASHES:
                self.load_failed = True
        ready, self._ready = self._ready, None
        self._process = None
        self._stopping = self._disconnected = False
        self.threads = self.cells_used = 0
        error = EngineDiedError(
            f"engine {self.name}: {self.reason or 'it was stopped'}", requests=0 if expected else self.requests
        )
        self._connection.fail(error)
        if ready is not None and not ready.done():
            ready.set_exception(ModelLoadError(self.reason) if self.load_failed else error)
            ready.exception()  # marks the exception as retrieved: the caller of `start` may have been cancelled
        self._set_state(State.STOPPED if expected else State.FAILED)

    def _set_state(self, state: State) -> None:
        if state is not self.state:
            self.state, self.since = state, time.monotonic()
            self._on_change(self)

    def _requests_changed(self) -> None:
        self._set_state(State.BUSY if self.requests else State.IDLE)

    def _has_ended(self) -> bool:
        """Whether the process has ended, even if the event loop has not noticed yet.

        A request sent to such a process must not be blamed for its end.
        """
        if self._process is None:
            return True
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def set_threads(self, threads: int) -> None:
        """Grant or revoke threads. A revocation takes effect when `threads` drops. Raises EngineDiedError."""
        self._connection.send(SetThreads(threads))
        if self.threads == 0:
            self._connection.active_at = time.monotonic()
        self.threads = max(self.threads, threads)

    def generate(self, request: Generate) -> AsyncGenerator[Answer, None]:
        """Send a request and yield its messages, `Finished` last. Raises EngineDiedError.

        Closing the generator early aborts the request.
        """
        if self._has_ended():
            raise EngineDiedError(f"engine {self.name} has just ended")
        return self._connection.generate(request)

    def abort(self, request: int) -> None:
        """Abort a request; `generate` then yields its `Finished`. Raises EngineDiedError."""
        self._connection.send(Abort(request))

    def suspend(self, request: int) -> None:
        """Stop a request and store its KV. `generate` then yields `Finished` with `moved`. Raises EngineDiedError."""
        self._connection.send(Suspend(request))

    def forget(self, requests: list[int]) -> None:
        """Drop the cells of ended requests. Does nothing if the engine is not running."""
        with suppress(EngineDiedError):
            self._connection.send(Forget(requests))

    async def discard(self, message: Discard) -> bool:
        """Drop the cells and queued blocks of a deleted response. Returns False if blocks may still be stored."""
        return self._process is None or await self._connection.discard(message)

    def kill(self, reason: str) -> None:
        """Kill a process that is hung or faulty. Its requests fail with `reason`."""
        if self._process is not None and self._process.returncode is None:
            self.reason = reason
            self._process.kill()

    async def stop(self) -> None:
        """Close the socket and wait until the process has exited. SIGKILL follows after STOP_SECONDS."""
        if self._task is None or self._task.done():
            return
        self._stopping = True
        if not self._connection.is_open and self._ready is not None and not self._ready.done():
            with suppress(EngineError):  # the process is being spawned, and has no socket to close yet
                await asyncio.wait_for(asyncio.shield(self._ready), STOP_SECONDS)
        self._connection.close()
        _, late = await asyncio.wait({self._task}, timeout=STOP_SECONDS)
        if late and self._process is not None:
            self._process.kill()
        await asyncio.shield(self._task)


def _require_files(count: int) -> None:
    """Raise OSError unless `count` more files can be opened.

    uvloop hits the limit in the middle of a spawn, and never closes the files that it has opened by then.
    """
    probes: list[int] = []
    try:
        while len(probes) < count:
            probes += os.pipe()
    finally:
        for probe in probes:
            os.close(probe)


async def _read_end(stream: asyncio.StreamReader, end: bytearray) -> None:
    while data := await stream.read(1 << 12):
        end += data
        del end[:-STDERR_BYTES]
