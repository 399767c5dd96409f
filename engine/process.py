"""One engine process as the gateway sees it: its state, its threads, and the answers it owes."""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

import msgspec

from engine.errors import EngineDiedError, ModelLoadError
from engine.messages import (
    Abort,
    Finished,
    Forget,
    Frames,
    FromEngine,
    Generate,
    LoadFailed,
    Ready,
    SetThreads,
    Started,
    ThreadsSet,
    ToEngine,
    Tokens,
    frame,
    from_engine_decoder,
)
from engine.worker import WorkerConfig

STOP_SECONDS: Final = 5.0
"""How long a process may take to leave after its socket closed: a step of a long prompt, then SIGKILL."""


class State(enum.Enum):
    """The states of contract.md's `engine_state`."""

    STOPPED = "stopped"
    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    FAILED = "failed"


class EngineProcess:
    """Spawns the child, speaks with it, and sees it die."""

    def __init__(
        self,
        name: str,
        config: WorkerConfig,
        *,
        on_change: Callable[[EngineProcess], None],
        on_threads: Callable[[EngineProcess], None] = lambda _: None,
    ) -> None:
        """`on_change` is called after every change of state, `on_threads` when it confirms a number of threads."""
        self.name = name
        self.state = State.STOPPED
        self.threads = 0
        """Threads it may use at this moment, as it last confirmed or as was granted above that."""
        self.cells = config.cells
        self.load_seconds = 0.0
        self.reason = ""
        """Why it failed, for the log and readyz."""
        self._config = config
        self._on_change = on_change
        self._on_threads = on_threads
        self._answers: dict[int, asyncio.Queue[Started | Tokens | Finished | EngineDiedError]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._spawning: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Spawn and wait until the model is loaded. Raises ModelLoadError or EngineDiedError."""
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._set_state(State.LOADING)
            # A task of its own: whoever asked first may leave while others wait for the same engine.
            self._spawning = asyncio.create_task(self._spawn())
        await asyncio.shield(self._ready)

    async def _spawn(self) -> None:
        try:
            reader = await self._open()
        except OSError as error:
            self.reason = f"no process could be started: {error.strerror}"
            self._died()
        else:
            self._watcher = asyncio.create_task(self._watch(reader))

    async def _open(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        config = msgspec.json.encode(self._config).decode()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "engine.worker", str(theirs.fileno()), config,
                pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # its backtrace starts a debugger that outlives us
            )  # fmt: skip
        reader, self._writer = await asyncio.open_connection(sock=ours)
        return reader

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        frames = Frames()
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for body in frames.feed(data):
                    self._hear(from_engine_decoder.decode(body))
        assert self._process is not None  # noqa: S101 - set before this task was made
        await self._process.wait()
        self._died()

    def _hear(self, message: FromEngine) -> None:
        match message:
            case Ready():
                self.cells, self.load_seconds = message.cells, message.load_seconds
                self._set_state(State.IDLE)
                if self._ready and not self._ready.done():
                    self._ready.set_result(None)
            case LoadFailed(reason=reason):
                self.reason = reason
            case ThreadsSet(threads=threads):
                self.threads = threads
                self._on_threads(self)
            case Started() | Tokens() | Finished():
                queue = self._answers.get(message.request)
                if queue is not None:
                    queue.put_nowait(message)

    def _died(self) -> None:
        code = self._process.returncode if self._process else None
        loading = self.state is State.LOADING
        ready, self._ready = self._ready, None
        if self._writer is not None:
            self._writer.close()
        self._process = self._writer = None
        self.threads = 0
        error = EngineDiedError(f"engine {self.name} ended with status {code}")
        for queue in self._answers.values():
            queue.put_nowait(error)
        if ready is not None and not ready.done():
            ready.set_exception(ModelLoadError(self.reason) if self.reason else error)
            ready.exception()  # marked as seen: the starter may have left
        self.reason = self.reason or str(error)
        self._set_state(State.FAILED if loading or code else State.STOPPED)

    def _set_state(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._on_change(self)

    def _send(self, message: ToEngine) -> None:
        if self._writer is None:
            raise EngineDiedError(f"engine {self.name} is not running")
        self._writer.write(frame(message))

    def set_threads(self, threads: int) -> None:
        """Grant or revoke threads; a revocation counts only once `threads` has sunk. Raises EngineDiedError."""
        self._send(SetThreads(threads))
        self.threads = max(self.threads, threads)

    async def generate(self, request: Generate) -> AsyncGenerator[Started | Tokens | Finished, None]:
        """Send a request and give what comes back, `Finished` last. Raises EngineDiedError.

        Left early, it aborts the request.
        """
        queue: asyncio.Queue[Started | Tokens | Finished | EngineDiedError] = asyncio.Queue()
        self._send(request)
        self._answers[request.request] = queue
        self._set_state(State.BUSY)
        done = False
        try:
            while not done:
                message = await queue.get()
                done = isinstance(message, Finished | EngineDiedError)
                if isinstance(message, EngineDiedError):
                    raise message
                yield message
        finally:
            del self._answers[request.request]
            if not done:
                with suppress(EngineDiedError):
                    self._send(Abort(request.request))
            if self.state is State.BUSY and not self._answers:
                self._set_state(State.IDLE)

    def abort(self, request: int) -> None:
        """Ask for the end of a request; its `Finished` still comes."""
        self._send(Abort(request))

    def forget(self, requests: list[int]) -> None:
        """Let it give up the cells of ended requests; a dead one has none."""
        with suppress(EngineDiedError):
            self._send(Forget(requests))

    async def stop(self) -> None:
        """Close the socket and see the process leave, by SIGKILL if it takes longer than STOP_SECONDS."""
        if self._spawning is not None:
            await self._spawning
        if self._process is None or self._writer is None or self._watcher is None:
            return
        process = self._process
        self._writer.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
        await self._watcher
