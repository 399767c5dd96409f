"""The gateway's end of the socket pair: sends messages to an engine, and routes its answers to the waiting requests."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

from engine.errors import EngineDiedError
from engine.messages import (
    Abort,
    Answer,
    Discard,
    Discarded,
    Finished,
    Frames,
    FromEngine,
    Generate,
    PromptProgress,
    Started,
    ToEngine,
    Tokens,
    frame,
    from_engine_decoder,
)

DISCARD_SECONDS: Final = 5.0
"""Maximum seconds for an engine to drop a deleted response: a step of a long prompt, and a write to a slow store."""


class Connection:
    """The requests of one engine. Its process may change; between two processes the connection is closed."""

    def __init__(
        self, engine: str, *, on_message: Callable[[FromEngine], None], on_requests: Callable[[], None]
    ) -> None:
        """Start closed. `engine` is the engine's name.

        `on_message` gets the messages about the engine itself. `on_requests` is called when a request is sent, and when
        the last one has ended.
        """
        self.active_at = 0.0
        """When the engine last sent a message, or received work while it had none: monotonic seconds."""
        self.productive = False
        """Whether the engine has computed something for a request since it was started."""
        self._engine = engine
        self._on_message = on_message
        self._on_requests = on_requests
        self._writer: asyncio.StreamWriter | None = None
        self._answers: dict[int, asyncio.Queue[Answer | EngineDiedError]] = {}
        self._discards: dict[int, asyncio.Future[bool]] = {}
        """Deletions that the engine has not confirmed yet, by number."""

    @property
    def requests(self) -> int:
        """Number of unfinished requests."""
        return len(self._answers)

    @property
    def is_open(self) -> bool:
        """Whether `open` has been called, and `fail` has not been called since."""
        return self._writer is not None

    async def open(self, sock: socket.socket) -> asyncio.StreamReader:
        """Own `sock`, whose other end a new process has. Returns the argument of `listen`."""
        reader, self._writer = await asyncio.open_connection(sock=sock)
        return reader

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Route messages until the socket closes. Raises ValueError or MsgspecError for an invalid message."""
        frames = Frames()
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self.active_at = time.monotonic()
                for body in frames.feed(data):
                    match from_engine_decoder.decode(body):
                        case Started() | PromptProgress() | Tokens() | Finished() as answer:
                            self.productive |= isinstance(answer, Tokens)
                            self.productive |= isinstance(answer, Finished) and answer.computed
                            if (queue := self._answers.get(answer.request)) is not None:
                                queue.put_nowait(answer)
                        case Discarded(number=number):
                            if (waiting := self._discards.pop(number, None)) is not None and not waiting.done():
                                waiting.set_result(True)
                        case message:
                            self._on_message(message)

    def send(self, message: ToEngine) -> None:
        """Send a message. Raises EngineDiedError."""
        if self._writer is None or self._writer.is_closing():
            raise EngineDiedError(f"engine {self._engine} is not running")
        self._writer.write(frame(message))

    async def generate(self, request: Generate) -> AsyncGenerator[Answer, None]:
        """See EngineProcess."""
        queue: asyncio.Queue[Answer | EngineDiedError] = asyncio.Queue()
        self.send(request)
        if not self._answers:
            self.active_at = time.monotonic()
        self._answers[request.request] = queue
        self._on_requests()
        done = False
        try:
            while not done:
                message = await queue.get()
                if isinstance(message, EngineDiedError):
                    raise message
                done = isinstance(message, Finished)
                yield message
        finally:
            if self._answers.get(request.request) is queue:  # otherwise the process has ended
                del self._answers[request.request]
                if not done:
                    with suppress(EngineDiedError):
                        self.send(Abort(request.request))
                if not self._answers:
                    self._on_requests()

    async def discard(self, message: Discard) -> bool:
        """See EngineProcess."""
        waiting = asyncio.get_running_loop().create_future()
        self._discards[message.number] = waiting
        try:
            self.send(message)
            return await asyncio.wait_for(waiting, DISCARD_SECONDS)
        except (EngineDiedError, TimeoutError):
            return False
        finally:
            self._discards.pop(message.number, None)

    def close(self) -> None:
        """Close the socket, which makes the process exit."""
        if self._writer is not None:
            self._writer.close()

    def fail(self, error: EngineDiedError) -> None:
        """End all requests with `error`, because the process has ended."""
        self.close()
        self._writer = None
        for queue in self._answers.values():
            queue.put_nowait(error)
        for waiting in self._discards.values():
            if not waiting.done():
                waiting.set_result(False)  # the engine may have stored the blocks before it exited
        self._answers.clear()
        self._discards.clear()
