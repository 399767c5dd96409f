"""One engine process as the gateway sees it: its state, its threads, and the answers it owes."""

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
from engine.errors import EngineDiedError, EngineError, ModelLoadError
from engine.messages import (
    Abort,
    Discard,
    Discarded,
    Finished,
    Forget,
    Frames,
    FromEngine,
    Generate,
    LoadFailed,
    Ready,
    SetThreads,
    Started,
    Stepped,
    StoreUsed,
    Suspend,
    ThreadsSet,
    ToEngine,
    Tokens,
    WorkerConfig,
    frame,
    from_engine_decoder,
)

STOP_SECONDS: Final = 5.0
"""How long a process may take to leave after its socket closed: a step of a long prompt, then SIGKILL."""
EXIT_SECONDS: Final = 1.0
"""Likewise for one that hung up by itself: a fault of its own, and its threads may keep it from ending."""
DISCARD_SECONDS: Final = 5.0
"""How long an engine may take to drop a deleted response: a step of a long prompt, and a write to a slow store."""
SPAWN_FILES: Final = 12
"""Open files that the gateway needs for a moment to start a process, and some more."""
STILLBORN: Final = 2
"""An engine that died so often while it loaded has a model that cannot be loaded, unless it was killed from outside."""
LAST_WORDS: Final = 1 << 14
"""Bytes of a process's stderr that are kept, to tell of what it died."""

Answer = Started | Tokens | Finished


class State(enum.Enum):
    """The states of the metric `engine_state` (docs/api.md)."""

    STOPPED = "stopped"
    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    FAILED = "failed"


class EngineProcess:
    """Spawns the child, speaks with it, and sees it die.

    It may be started and stopped any number of times; who wants it while it stops waits for the next start.
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
    ) -> None:
        """`on_change` is called after every change of state, `on_threads` when it confirms a number of threads."""
        self.name = name
        self.state = State.STOPPED
        self.since = time.monotonic()
        """When it came into this state."""
        self.heard = 0.0
        """When it last said something, or came to have something to do: monotonic seconds."""
        self.threads = 0
        """Threads it may use at this moment, as it last confirmed or as was granted above that."""
        self.cells = config.cells
        self.cells_used = 0
        self.load_seconds = 0.0
        """From asking for the process to its being ready, the last time; of these:"""
        self.weights_seconds = 0.0
        self.context_seconds = 0.0
        self.reason = ""
        """Why it failed, for the log and readyz."""
        self.load_failed = False
        """Whether it was the model that could not be loaded: then starting it again is of no use by itself."""
        self._stillborn = 0
        """Times in a row that it died while it loaded."""
        self._config = config
        self._on_change = on_change
        self._on_threads = on_threads
        self._on_step = on_step
        self._on_store = on_store
        self._answers: dict[int, asyncio.Queue[Answer | EngineDiedError]] = {}
        self._discards: dict[int, asyncio.Future[bool]] = {}
        """Deletions that it has not confirmed yet, by their numbers."""
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._life: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._stopping = False
        self._hung_up = False
        """Whether nothing more passes between it and us, though its process may still be there."""

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def loaded(self) -> bool:
        """Whether it can compute at once: not one that is on its way out."""
        return self.state in (State.IDLE, State.BUSY) and not (self._stopping or self._hung_up)

    @property
    def requests(self) -> int:
        """Requests that it owes an answer."""
        return len(self._answers)

    async def start(self) -> None:
        """Spawn and wait until the model is loaded. Raises ModelLoadError or EngineDiedError."""
        while (self._stopping or self._hung_up) and self._life is not None:
            await asyncio.shield(self._life)
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self.reason, self.load_failed = "", False
            self._set_state(State.LOADING)
            # A task of its own: whoever asked first may leave while others wait for the same engine.
            # With nothing of that request in its context, or the log would name it for what happens hours later.
            self._life = asyncio.create_task(self._live(), context=contextvars.Context())
        await asyncio.shield(self._ready)

    async def _live(self) -> None:
        """From the spawning of a process to its end."""
        last_words = bytearray()
        try:
            reader = await self._spawn()
        except OSError as error:
            self.reason = f"no process could be started: {error.strerror}"
        else:
            assert self._process is not None  # noqa: S101 - just spawned
            assert self._process.stderr is not None  # noqa: S101 - asked for as a pipe
            listening = asyncio.create_task(_keep_end(self._process.stderr, last_words))
            await self._listen(reader)
            await self._see_off(self._process)
            await listening
        self._died(bytes(last_words))

    async def _see_off(self, process: asyncio.subprocess.Process) -> None:
        """Wait until a process ends that has hung up, and do not wait long."""
        self._hung_up = True
        seconds = STOP_SECONDS if self._stopping else EXIT_SECONDS
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)
        if process.returncode is None:
            self.kill("it hung up and did not end")
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
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(frame(self._config))
        return reader

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        frames = Frames()
        try:
            while data := await reader.read(1 << 16):
                self.heard = time.monotonic()
                for body in frames.feed(data):
                    self._hear(from_engine_decoder.decode(body))
        except ConnectionError:
            return
        except (ValueError, msgspec.MsgspecError):
            self.kill("it said what is no message")

    def _hear(self, message: FromEngine) -> None:
        match message:
            case Started() | Tokens() | Finished():
                queue = self._answers.get(message.request)
                if queue is not None:
                    queue.put_nowait(message)
            case Stepped():
                self.cells_used = message.cells
                self._on_step(message)
            case StoreUsed():
                self._on_store(message)
            case Discarded(number=number):
                self._confirm_discard(number)
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
        self._stillborn = 0
        self._set_state(State.IDLE)
        if self._ready and not self._ready.done():
            self._ready.set_result(None)

    def _confirm_discard(self, number: int) -> None:
        waiting = self._discards.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(True)

    def _died(self, last_words: bytes) -> None:
        status = self._process.returncode if self._process else None
        wanted = self._stopping or status == 0
        outside = status == -signal.SIGKILL and not self.reason  # for want of memory, or by hand: not by its model
        if not wanted and not self.reason:
            self.reason = cause_of_death(status, last_words)
        if not wanted and not outside and self.state is State.LOADING and self._process is not None:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:  # what happens twice in a row is no accident
                self.load_failed = True
        if self._writer is not None:
            self._writer.close()
        ready, self._ready = self._ready, None
        self._process = self._writer = None
        self._stopping = self._hung_up = False
        self.threads = self.cells_used = 0
        error = EngineDiedError(
            f"engine {self.name}: {self.reason or 'it was stopped'}", requests=0 if wanted else len(self._answers)
        )
        for queue in self._answers.values():
            queue.put_nowait(error)
        for waiting in self._discards.values():
            if not waiting.done():
                waiting.set_result(False)  # it may have stored blocks on its way out
        self._discards.clear()
        if ready is not None and not ready.done():
            ready.set_exception(ModelLoadError(self.reason) if self.load_failed else error)
            ready.exception()  # marked as seen: the starter may have left
        self._set_state(State.STOPPED if wanted else State.FAILED)

    def _set_state(self, state: State) -> None:
        if state is not self.state:
            self.state, self.since = state, time.monotonic()
            self._on_change(self)

    def _has_ended(self) -> bool:
        """Whether its process has ended, even if that was not heard of yet: what it is sent is nobody's fault then."""
        if self._process is None:
            return True
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _send(self, message: ToEngine) -> None:
        if self._writer is None or self._writer.is_closing():
            raise EngineDiedError(f"engine {self.name} is not running")
        self._writer.write(frame(message))

    def set_threads(self, threads: int) -> None:
        """Grant or revoke threads; a revocation counts only once `threads` has sunk. Raises EngineDiedError."""
        self._send(SetThreads(threads))
        if self.threads == 0:
            self.heard = time.monotonic()
        self.threads = max(self.threads, threads)

    async def generate(self, request: Generate) -> AsyncGenerator[Answer, None]:
        """Send a request and give what comes back, `Finished` last. Raises EngineDiedError.

        Left early, it aborts the request.
        """
        queue: asyncio.Queue[Answer | EngineDiedError] = asyncio.Queue()
        if self._has_ended():
            raise EngineDiedError(f"engine {self.name} has just ended")
        self._send(request)
        if not self._answers:
            self.heard = time.monotonic()
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

    def suspend(self, request: int) -> None:
        """Ask it to give a request up and store its KV: `Finished` comes, reason `moved`. Raises EngineDiedError."""
        self._send(Suspend(request))

    def forget(self, requests: list[int]) -> None:
        """Let it give up the cells of ended requests; a dead one has none."""
        with suppress(EngineDiedError):
            self._send(Forget(requests))

    async def discard(self, message: Discard) -> bool:
        """Have a deleted response's cells and queued blocks dropped. Returns False if they may still be stored."""
        if self._process is None:
            return True
        waiting = asyncio.get_running_loop().create_future()
        self._discards[message.number] = waiting
        try:
            self._send(message)
            return await asyncio.wait_for(waiting, DISCARD_SECONDS)
        except (EngineDiedError, TimeoutError):
            return False
        finally:
            self._discards.pop(message.number, None)

    def kill(self, reason: str) -> None:
        """End a process that does not do its work any more; what it owes fails, for `reason`."""
        if self._process is not None and self._process.returncode is None:
            self.reason = reason
            self._process.kill()

    async def stop(self) -> None:
        """Close the socket and see the process leave, by SIGKILL if it takes longer than STOP_SECONDS."""
        if self._life is None or self._life.done():
            return
        self._stopping = True
        if self._writer is None and self._ready is not None and not self._ready.done():
            with suppress(EngineError):  # it is being spawned, and can be closed only once it is there
                await asyncio.wait_for(asyncio.shield(self._ready), STOP_SECONDS)
        if self._writer is not None:
            self._writer.close()
        _, late = await asyncio.wait({self._life}, timeout=STOP_SECONDS)
        if late and self._process is not None:
            self._process.kill()
        await asyncio.shield(self._life)


def _require_files(count: int) -> None:
    """Raise OSError unless so many files can be opened now.

    uvloop finds that out in the middle of a spawn, and never closes those that it had opened until then.
    """
    probes: list[int] = []
    try:
        while len(probes) < count:
            probes += os.pipe()
    finally:
        for probe in probes:
            os.close(probe)


async def _keep_end(stream: asyncio.StreamReader, end: bytearray) -> None:
    while data := await stream.read(1 << 12):
        end += data
        del end[:-LAST_WORDS]
