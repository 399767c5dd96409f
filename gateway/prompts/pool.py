"""The gateway's pool of prompt workers: starts their host, sends them jobs, and restarts the host when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psutil
import structlog

from engine import environment, module_command
from gateway.errors import (
    ContextLengthExceededError,
    EngineUnavailableError,
    InvalidRequestError,
)
from gateway.prompts import messages
from gateway.prompts.messages import (
    HEAD,
    MAX_FRAME,
    SLOW_SECONDS,
    Configuration,
    Died,
    Encode,
    Encoded,
    Fault,
    Job,
    OperatorPrefix,
    Refused,
    Reply,
    Serving,
    Tokenize,
    Unavailable,
)
from gateway.prompts.queue import JobQueue, Waiting

WORKERS: Final = 2
"""Number of workers. One takes short jobs only, so that long jobs never delay them."""
LOWEST: Final = 19
"""Nice value of a worker with a slow job."""
BACKOFF: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the first, second, … restart of a host that ended before it served a job."""
OVERDUE_SECONDS: Final = 10.0
"""Seconds beyond a job's time limit after which a silent worker is killed with its host: the kernel's signals that
end a job do not reach a stopped process, and a stopped host does not report a death."""
_TIME: Final = frozenset({signal.SIGALRM, signal.SIGPROF, signal.SIGXCPU})

log = structlog.get_logger("prompts")


class PromptWorkerError(Exception):
    """An internal error of a worker, with details in the log."""


class PromptWorkers:
    """Renders and tokenizes in worker processes, while `run` is running."""

    def __init__(self, configuration: Configuration, *, on_death: Callable[[], None] = lambda: None) -> None:
        """`on_death` is called when a worker dies. `run` starts the processes."""
        self.on_death = on_death
        self._configuration = configuration
        self._queue = JobQueue()
        self._slots = [_Slot(self, short_only=number == 0) for number in range(WORKERS)]
        self._unavailable = ""
        """Why no host can start; empty while one runs or is starting."""
        self._failures = 0
        self._leader: int | None = None
        """Process id of the host, while one runs."""

    @property
    def failure(self) -> str:
        """Why no prompt can be encoded, in words; empty while a host runs or is being started."""
        return self._unavailable

    async def encode(self, job: Encode, *, user: str) -> Encoded:
        """Return the prompt of a request from `user`. Raises ApiError."""
        return await self._submit(job, user)

    async def tokenize(self, job: Tokenize, *, user: str) -> bytes:
        """Return the ids of a text without a template. Raises ApiError."""
        return (await self._submit(job, user)).ids

    async def operator_prefix(self, began: int) -> bytes:
        """Return the ids that all prompts of conversations started at `began` share. Raises ApiError."""
        if not self._configuration.instructions:
            return b""
        return (await self._submit(OperatorPrefix(began), "")).operator

    async def run(self) -> None:
        """Run a host, and restart it when it ends, until cancelled."""
        while True:
            try:
                await self._host()
            except OSError as error:
                self._unavailable = f"the process could not be started: {error.strerror}"
            self._failures += 1
            self._fail_waiting()
            await asyncio.sleep(BACKOFF[min(self._failures, len(BACKOFF)) - 1])

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        return [slot.pid for slot in self._slots if slot.pid is not None]

    async def _submit(self, job: Job, user: str) -> Encoded:
        if self._unavailable:
            raise EngineUnavailableError(f"the prompt workers are unavailable: {self._unavailable}")
        waiting = Waiting(user, messages.encode_job(job))
        if len(waiting.body) > MAX_FRAME:
            raise ContextLengthExceededError("the conversation is too long; shorten it", param="input")
        self._queue.add(waiting)
        self.dispatch()
        return await waiting.result

    def dispatch(self) -> None:
        """Send waiting jobs to idle workers."""
        for slot in self._slots:
            if slot.idle and (job := self._queue.take(short_only=slot.short_only)) is not None:
                slot.begin(job)

    def available(self) -> None:
        """Record that a worker is ready."""
        self._unavailable = ""

    def served(self) -> None:
        """Record that a worker has replied, so the host works."""
        self._failures = 0

    def unavailable(self, reason: str) -> None:
        """Record that the host cannot load the model."""
        self._unavailable = reason
        log.error("prompt workers unavailable", reason=reason)

    @property
    def deadline(self) -> float:
        """Seconds from the beginning of a job to when a worker that is still silent must hang."""
        return self._configuration.seconds + OVERDUE_SECONDS

    def kill_host(self) -> None:
        """Kill the host with its workers; `run` starts another one."""
        if self._leader is not None:
            log.error("prompt workers hang and are killed")
            _end_session(self._leader)

    def requeue(self, job: Waiting) -> bool:
        """Retry a job once whose worker died for another reason; return whether it is retried."""
        if job.retried:
            return False
        job.retried = True
        self._queue.add_first(job)
        return True

    def _fail_waiting(self) -> None:
        if self._unavailable:
            for job in self._queue.clear():
                _fail(job, EngineUnavailableError(f"the prompt workers are unavailable: {self._unavailable}"))

    async def _host(self) -> None:
        """Run one host until it ends."""
        pairs = [socket.socketpair() for _ in self._slots]
        theirs = [pair[1] for pair in pairs]
        try:
            process = await asyncio.create_subprocess_exec(
                *module_command("gateway.prompts.worker", *(str(sock.fileno()) for sock in theirs)),
                pass_fds=[sock.fileno() for sock in theirs], start_new_session=True,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                env=environment() | {"OPENBLAS_NUM_THREADS": "1"},  # a process with threads must not fork
            )  # fmt: skip
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for sock in theirs:
                sock.close()
        self._leader = process.pid
        try:
            assert process.stdin is not None  # noqa: S101 - stdin=PIPE
            process.stdin.write(messages.encode_configuration(self._configuration))
            process.stdin.close()
            async with asyncio.TaskGroup() as group:
                for slot, (ours, _) in zip(self._slots, pairs, strict=True):
                    group.create_task(slot.connect(ours))
                await process.wait()
                _end_session(process.pid)  # workers outlive their host; the slots then read to the end of the sockets
        finally:
            self._leader = None
            _end_session(process.pid)
            for slot in self._slots:
                slot.disconnect()
            await process.wait()


class _Slot:
    """The connection to one worker, which stays while the worker's process is replaced."""

    def __init__(self, pool: PromptWorkers, *, short_only: bool) -> None:
        self.short_only = short_only
        self.pid: int | None = None
        self._pool = pool
        self._writer: asyncio.StreamWriter | None = None
        self._job: Waiting | None = None
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: asyncio.TimerHandle | None = None
        """Kills the host unless the job ends before."""
        self._before = 0.0
        """CPU seconds of the worker when its job started."""

    @property
    def idle(self) -> bool:
        """Whether the worker can take a job."""
        return self._writer is not None and self.pid is not None and self._job is None

    def begin(self, job: Waiting) -> None:
        """Send a job to the worker."""
        assert self._writer is not None and self.pid is not None  # noqa: S101 - the slot is idle
        self._job = job
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._writer.write(messages.frame(job.body, self._number))
        with suppress(OSError, psutil.Error):
            self._before = _processor_seconds(self.pid)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SLOW_SECONDS, self._lower)
        self._overdue = loop.call_later(self._pool.deadline, self._pool.kill_host)

    async def connect(self, sock: socket.socket) -> None:
        """Read replies until the host closes the socket."""
        reader, self._writer = await asyncio.open_connection(sock=sock)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size, number = HEAD.unpack(await reader.readexactly(HEAD.size))
                self._receive(messages.reply_decoder.decode(await reader.readexactly(size)), number)

    def disconnect(self) -> None:
        """Close the connection; a running job is retried on the next host."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self.pid = None
        job = self._take()
        if job is not None and not self._pool.requeue(job):
            _fail(job, EngineUnavailableError("the prompt worker ended; try again"))

    def _receive(self, reply: Reply, number: int) -> None:
        match reply:
            case Serving():
                self.pid = reply.pid
                self._pool.available()
            case Unavailable():
                self._pool.unavailable(reply.reason)
            case Died():
                self._died(reply.signal)
            case Encoded() | Refused() | Fault() if number == self._number and (job := self._take()) is not None:
                self._pool.served()
                _conclude(job, reply)
        self._pool.dispatch()

    def _died(self, number: int) -> None:
        self.pid = None
        self._pool.on_death()
        job = self._take()
        log.warning("prompt worker died", cause=_cause(number), busy=job is not None)
        if job is None or (number == signal.SIGKILL and self._pool.requeue(job)):  # killed from outside
            return
        text = "takes too long to process" if number in _TIME else "crashed the tokenizer or the chat template"
        _fail(
            job,
            InvalidRequestError(
                f"this request {text}; the usual cause is a long run of letters or spaces without a break, or a very "
                "long message: shorten it",
                param="input",
            ),
        )

    def _take(self) -> Waiting | None:
        job, self._job = self._job, None
        for timer in (self._timer, self._overdue):
            if timer is not None:
                timer.cancel()
        self._timer = self._overdue = None
        return job

    def _lower(self) -> None:
        """Lower the worker's priority if its job has used SLOW_SECONDS of CPU time and may slow down engines."""
        self._timer = None
        if self._job is None:
            return
        with suppress(OSError, psutil.Error):
            if self.pid is not None and _processor_seconds(self.pid) - self._before >= SLOW_SECONDS:
                os.setpriority(os.PRIO_PROCESS, self.pid, LOWEST)
                return
        self._timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._lower)


def _conclude(job: Waiting, reply: Encoded | Refused | Fault) -> None:
    match reply:
        case Encoded():
            if not job.result.done():
                job.result.set_result(reply)
        case Refused():
            _fail(job, reply.error())
        case Fault():
            log.error("prompt worker fault", kind=reply.kind, place=reply.place)
            _fail(job, PromptWorkerError(f"{reply.kind} in a prompt worker"))


def _cause(number: int) -> str:
    try:
        return signal.Signals(number).name if number else "exit"
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _end_session(leader: int) -> None:
    """Kill a host and its workers, which form one session."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _fail(job: Waiting, error: Exception) -> None:
    if not job.result.done():
        job.result.set_exception(error)


def _processor_seconds(pid: int) -> float:
    """Return the CPU seconds of a process. Raises OSError or psutil.Error if it has ended."""
    if os.uname().sysname == "Linux":
        return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of `pid`: 1 us, while psutil reads three files
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
