"""The processes that render and tokenize: a host loads the vocabulary once and forks workers, which share its memory.

`python -m gateway.prompts.worker FD …` is the host; it reads its Configuration from standard input and has one socket
for each worker. A worker serves one job at a time. The kernel ends the worker if a job takes too long (SIGPROF,
SIGALRM) or too much memory, in whatever code and without a supervisor; a crash of llama.cpp ends only the worker. The
host reports the death on the worker's socket and forks the next worker, which takes a millisecond.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from engine import Model, ModelLoadError, mark
from gateway.config.resource_limits import limit
from gateway.prompts import messages
from gateway.prompts.chat_template import TemplateError
from gateway.prompts.encoder import Encoder
from gateway.prompts.messages import HEAD, SLOW_SECONDS, Configuration, Died, Fault, Reply, Serving, Unavailable

RECYCLED: Final = 3
"""Exit status of a worker that is replaced because its job was slow."""
STACK: Final = 256 << 20
"""Bytes of stack: for many vocabularies llama.cpp splits text with std::regex, which recurses at every letter."""
MOST_DEATHS: Final = 20
"""Consecutive worker deaths after which the host exits, since something is wrong with the machine."""


def main(arguments: Sequence[str]) -> int:
    """Serve the sockets until the gateway closes them."""
    _allow_deep_recursion()
    configuration = messages.configuration_decoder.decode(sys.stdin.buffer.read())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on a terminal is the gateway's to handle
    sockets = [socket.socket(fileno=int(argument)) for argument in arguments]
    try:
        encoder = _load(configuration)
    except (ModelLoadError, TemplateError, OSError) as error:
        for connection in sockets:
            _send(connection, Unavailable(str(error)))
        return 1
    return _Host(configuration, encoder, sockets).run()


def _load(configuration: Configuration) -> Encoder:
    """Load the vocabulary. Raises ModelLoadError, TemplateError or OSError."""
    path = Path(configuration.model)
    if configuration.mark not in (None, mark(path)):
        raise ModelLoadError(f"{path.name} changed since the server started; restart the server")
    model = Model(path, vocab_only=True)
    return Encoder(model.vocabulary, configuration.template, instructions=configuration.instructions)


class _Host:
    """Forks a worker for each socket, and a new one whenever a worker ends."""

    def __init__(self, configuration: Configuration, encoder: Encoder, sockets: Sequence[socket.socket]) -> None:
        self._configuration = configuration
        self._encoder = encoder
        self._sockets = sockets
        self._workers: dict[int, socket.socket] = {}

    def run(self) -> int:
        deaths = 0
        gc.freeze()  # a collection in a worker would write to the pages that it shares with the host
        for connection in self._sockets:
            self._fork(connection)
        while self._workers:
            pid, status = os.wait()
            connection = self._workers.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code == 0:  # the gateway closed the socket
                continue
            deaths = 0 if code == RECYCLED else deaths + 1
            if deaths > MOST_DEATHS:
                return 1
            try:
                if code != RECYCLED:
                    _send(connection, Died(max(0, -code)))
            except OSError:  # the gateway has ended
                continue
            try:
                self._fork(connection)
            except OSError:  # no process or no memory: the gateway starts another host
                return 1
        return 0

    def _fork(self, connection: socket.socket) -> None:
        pid = os.fork()
        if pid:
            self._workers[pid] = connection
            return
        status = 1
        try:
            for other in self._sockets:
                if other is not connection:
                    other.close()
            limit(resource.RLIMIT_DATA, self._configuration.memory)
            status = _serve(connection, self._encoder, self._configuration)
        finally:
            os._exit(status)


def _serve(connection: socket.socket, encoder: Encoder, configuration: Configuration) -> int:
    """Serve jobs until the gateway closes the socket; return the exit status."""
    with suppress(ConnectionError):
        _send(connection, Serving(os.getpid()))
        while (received := _receive(connection)) is not None:
            number, body = received
            before = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, configuration.processor_seconds)
            signal.setitimer(signal.ITIMER_REAL, configuration.seconds)
            reply = _answer(encoder, body)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            slow = time.process_time() - before > SLOW_SECONDS
            _send(connection, reply, number)
            if slow:
                return RECYCLED
    return 0


def _answer(encoder: Encoder, body: bytes) -> Reply:
    try:
        return encoder.run(messages.job_decoder.decode(body))
    except Exception as error:  # noqa: BLE001 - the gateway logs it and returns internal_error
        frames = traceback.extract_tb(error.__traceback__)
        place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        return Fault(type(error).__name__, place[:2000])


def _receive(connection: socket.socket) -> tuple[int, bytes] | None:
    """Return the next job's number and body; None if the gateway closed the socket."""
    head = _read(connection, HEAD.size)
    if head is None:
        return None
    size, number = HEAD.unpack(head)
    body = _read(connection, size)
    return None if body is None else (number, body)


def _read(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        n = connection.recv_into(view[done:])
        if not n:
            return None
        done += n
    return bytes(data)


def _send(connection: socket.socket, reply: Reply, number: int = 0) -> None:
    connection.sendall(messages.frame(messages.encode_reply(reply), number))


def _allow_deep_recursion() -> None:
    """Execute this program again with a larger stack, whose size is fixed at program start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError):  # not permitted: then long words crash a worker sooner
            resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
        if resource.getrlimit(resource.RLIMIT_STACK)[0] != wanted:
            return
        os.execv(sys.orig_argv[0], sys.orig_argv)  # noqa: S606 - this very program


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
