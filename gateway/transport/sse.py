"""Server-sent events: a response's events, sent at the client's own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.observability.faults import report
from gateway.protocol.events import Event, refusal
from gateway.protocol.log import Reader
from gateway.responses.runner import Running
from gateway.transport.bodies import disconnected

SEND_SECONDS: Final = 30.0
"""Seconds without progress after which a client counts as disconnected."""
ALIVE_EVERY: Final = 15.0
"""Seconds without a frame after which a comment is sent, so that no proxy closes the stream as idle."""
ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"
"""The end of a stream."""
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would buffer events


async def follow(running: Running, reader: Reader) -> AsyncIterator[Event]:
    """Yield the events of a response from `reader`'s position on."""
    available = asyncio.Event()

    def wake() -> None:
        if reader.lagging:
            running.on_lag()
        available.set()

    reader.log.watchers.add(wake)
    try:
        while not reader.done:
            event = reader.next()
            if event is not None:
                yield event
                continue
            available.clear()
            await available.wait()
    finally:
        reader.log.watchers.discard(wake)


def frame(event: Event) -> bytes:
    """Return an event as one frame of the stream."""
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), msgspec.json.encode(event))


async def frames(running: Running, reader: Reader) -> AsyncIterator[bytes]:
    """Yield a response's events as frames, then DONE; the last event is an `error` if they cannot be encoded."""
    try:
        async for event in follow(running, reader):
            yield frame(event)
    except Exception as error:  # noqa: BLE001 - the stream must not end without an error
        yield frame(refusal(report(error, running.id)))
    yield DONE


class EventStream(Response):
    """Sends frames until they end or the client disconnects; both call `on_close`.

    After ALIVE_EVERY seconds without a frame it sends ALIVE.
    """

    media_type = "text/event-stream"

    def __init__(self, request: Request, chunks: AsyncIterator[bytes], on_close: Callable[[], None]) -> None:
        """`request` is the one that this responds to; its body must have been read."""
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._request = request
        self._chunks = chunks
        self._on_close = on_close
        self._sending = asyncio.Lock()
        self._sent = asyncio.get_running_loop().time()
        """When the last chunk was sent, on the event loop's clock."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the response."""
        tasks = [
            asyncio.create_task(work)
            for work in (self._send(send), self._keep_alive(send), disconnected(self._request))
        ]
        try:
            # Only uvicorn cancels this, if the client does not read to the end; it would log a traceback.
            with suppress(asyncio.CancelledError):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._on_close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            await self._send_chunk(send, chunk)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        """Send ALIVE after each ALIVE_EVERY seconds without a chunk."""
        idle = 0.0
        while True:
            await asyncio.sleep(ALIVE_EVERY - idle)
            idle = asyncio.get_running_loop().time() - self._sent
            if idle >= ALIVE_EVERY:
                await self._send_chunk(send, ALIVE)
                idle = 0.0

    async def _send_chunk(self, send: Send, chunk: bytes) -> None:
        async with self._sending, asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sent = asyncio.get_running_loop().time()
