"""Server-sent events: a response's events followed at the client's own pace."""

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
from gateway.responses.registry import Running
from gateway.transport.bodies import departure

SEND_SECONDS: Final = 30.0
"""A client that takes nothing for so long is gone."""
ALIVE_EVERY: Final = 15.0
"""Seconds of silence after which a comment is sent, so that no proxy takes the stream for dead."""
ALIVE: Final = b": keep-alive\n\n"
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold events back


async def follow(running: Running, reader: Reader) -> AsyncIterator[Event | None]:
    """The events of a response from where `reader` stands to its end; None after ALIVE_EVERY seconds without one."""
    news = asyncio.Event()

    def wake() -> None:
        if reader.lagging:
            running.fell_behind()
        news.set()

    reader.log.watchers.add(wake)
    try:
        while not reader.done:
            event = reader.next()
            if event is not None:
                yield event
                continue
            news.clear()
            try:
                async with asyncio.timeout(ALIVE_EVERY):
                    await news.wait()
            except TimeoutError:
                yield None
    finally:
        reader.log.watchers.discard(wake)


def frame(event: Event) -> bytes:
    """One event as it goes over the wire."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


async def frames(running: Running, reader: Reader) -> AsyncIterator[bytes]:
    """A response's events as frames; an `error` is the last one if they cannot be told."""
    try:
        async for event in follow(running, reader):
            yield ALIVE if event is None else frame(event)
    except Exception as error:  # noqa: BLE001 - the client must not wait in vain
        yield frame(refusal(report(error, running.turn.id)))


class EventStream(Response):
    """Sends frames until they end or the client is gone; `on_close` is called in either case."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, chunks: AsyncIterator[bytes], on_close: Callable[[], None]) -> None:
        """`request` is the one that is answered; its body was read before."""
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._request = request
        self._chunks = chunks
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Answer."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(departure(self._request))
        try:
            # Cancelled by uvicorn alone, which would log that with a traceback: the client did not read to the end.
            with suppress(asyncio.CancelledError):
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            self._on_close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
