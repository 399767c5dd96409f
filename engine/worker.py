"""The engine process: receive messages, run steps, send tokens, until the gateway closes its end of the socket pair.

The pool starts it as `python -m engine.worker FD`. It exits when the socket closes, so engines also end when their
gateway is killed with SIGKILL: the next read returns end of file.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from engine.channel import Channel
from engine.core import EngineCore
from engine.errors import EngineError
from engine.llama import Model
from engine.messages import (
    Abort,
    Discard,
    Forget,
    Generate,
    LoadFailed,
    Ready,
    SetThreads,
    Suspend,
    ThreadsSet,
    ToEngine,
    WorkerConfig,
)
from engine.modelfile import require_same

FLUSH_INTERVAL: Final = 0.04
"""Maximum seconds over which tokens are collected into one message: 25 updates a second look continuous."""
UPDATES: Final = 100
"""Updates that an engine sends per second, of all its requests together: each costs the gateway processor time that the
engines then lack. One or two requests send each step's token at once; four and more, one update per FLUSH_INTERVAL."""


def flush_interval(requests: int) -> float:
    """Return the seconds between two messages with tokens of this many requests."""
    return min(FLUSH_INTERVAL, requests / UPDATES)


class Worker:
    """The message loop of one engine."""

    def __init__(self, channel: Channel, model: Model, config: WorkerConfig) -> None:
        """Create the main context. Raises ModelLoadError."""
        self._channel = channel
        self._core = EngineCore(channel, model, config)
        self.cells = self._core.cells
        self._flushed_at = 0.0
        """Time of the last flush, in monotonic seconds."""

    def run(self) -> None:
        """Serve until the gateway closes the socket. Raises EOFError then."""
        while True:
            self._core.start_followers()
            for message in self._channel.receive(wait=not self._core.can_step and not self._core.storing):
                self._handle(message)
            self._core.start_compiled()
            self._core.transfer()
            if self._channel.urgent:  # before the step: a prefill step is long
                self._channel.flush()
            self._core.step()
            self._flush()

    def close(self) -> None:
        """Write all queued blocks to the store."""
        self._core.close()

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Generate():
                self._core.add(message)
            case Abort(request=request):
                self._core.end(request, "aborted")
            case Suspend(request=request):
                self._core.end(request, "moved")
            case Forget(requests=requests):
                self._core.forget(requests)
            case Discard():
                self._core.discard(message)
            case SetThreads(threads=threads):
                self._core.set_threads(threads)
                self._channel.send(ThreadsSet(threads))

    def _flush(self) -> None:
        """Send the queued messages, but not more than UPDATES of tokens per second."""
        now = time.monotonic()
        if now - self._flushed_at >= flush_interval(self._channel.collected) or not self._core.can_step:
            self._channel.send_all_tokens()
            self._channel.urgent = True
        if self._channel.urgent:
            self._channel.flush()
            self._flushed_at = now


def main(argv: list[str]) -> int:
    """Load the model, report `Ready` or `LoadFailed`, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway handles Ctrl-C: it drains first
    channel = Channel(socket.socket(fileno=int(argv[1])))
    try:
        config = channel.first()
        assert isinstance(config, WorkerConfig)  # noqa: S101 - the pool's first message
        started = time.monotonic()
        require_same(Path(config.model), config.mark, config.build.get("model"))
        model = Model(Path(config.model))
        loaded = time.monotonic()
        worker = Worker(channel, model, config)
    except EOFError:
        return 0
    except EngineError as error:
        channel.send(LoadFailed(str(error)))
        channel.flush()
        return 1
    try:
        channel.send(Ready(worker.cells, loaded - started, time.monotonic() - loaded))
        channel.flush()
        worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
