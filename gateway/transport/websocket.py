"""The main door: the Responses API in WebSocket mode."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from engine import EngineProcess
from gateway.caller import Caller
from gateway.errors import ApiError, InvalidRequestError, QueueFullError
from gateway.protocol.events import Event, refusal
from gateway.protocol.requests import ResponseCancel, ResponseCreate, parse
from gateway.turn import House, Stored, TurnRunner

PENDING: Final = 16
"""Requests of one connection that may wait behind the one being answered."""
UNSTORED: Final = 64
"""Responses with `store: false` that a connection can still continue; the oldest go."""
SEND_SECONDS: Final = 30.0
"""A client that takes nothing for so long is gone."""


class Bounded(OrderedDict[str, Stored]):
    """The connection's own responses, the newest UNSTORED of them."""

    def __setitem__(self, key: str, value: Stored) -> None:
        """Keep one more and let the oldest go."""
        super().__setitem__(key, value)
        if len(self) > UNSTORED:
            self.popitem(last=False)


class Connection:
    """One socket: a reader that never waits for an answer, and a worker that answers in order."""

    def __init__(self, house: House, socket: WebSocket, *, caller: Caller) -> None:
        """Serve `socket`, accepted already, for `caller`."""
        self._house = house
        self._socket = socket
        self._caller = caller
        self._pending: asyncio.Queue[ResponseCreate] = asyncio.Queue(PENDING)
        self._unstored: MutableMapping[str, Stored] = Bounded()
        self._traces: dict[EngineProcess, list[int]] = {}
        """Cells that requests with `store: false` left in engines: they go with the connection."""
        self._running: TurnRunner | None = None
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Until the client leaves; what then runs is ended."""
        worker = asyncio.create_task(self._answer())
        reader = asyncio.create_task(self._read())
        try:
            done, _ = await asyncio.wait({worker, reader}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with suppress(WebSocketDisconnect, TimeoutError):
                    task.result()
        finally:
            for task in (worker, reader):
                task.cancel()
            await asyncio.gather(worker, reader, return_exceptions=True)
            for engine, requests in self._traces.items():
                engine.forget(requests)

    async def _read(self) -> None:
        while True:
            frame = await self._socket.receive()
            if frame["type"] == "websocket.disconnect":
                return
            named = None
            try:
                message = parse(frame.get("text") or frame.get("bytes") or "")
                if isinstance(message, ResponseCancel):
                    named = message.response_id
                    self._cancel(named)
                else:
                    self._line_up(message)
            except ApiError as error:
                await self._send(refusal(error, response_id=named))

    def _line_up(self, request: ResponseCreate) -> None:
        try:
            self._pending.put_nowait(request)
        except asyncio.QueueFull as error:
            raise QueueFullError(f"{PENDING} requests of this connection wait already") from error

    def _cancel(self, response: str) -> None:
        if self._running is None or self._running.id != response:
            raise InvalidRequestError(f"{response} is not running", param="response_id")
        self._running.cancel()

    async def _answer(self) -> None:
        while True:
            request = await self._pending.get()
            turn = TurnRunner(self._house, request, caller=self._caller, unstored=self._unstored, emit=self._send)
            self._running = turn
            try:
                await turn.run()
            except ApiError as error:
                await self._send(refusal(error))
            finally:
                self._running = None
                if request.store is False and turn.left is not None:
                    engine, number = turn.left
                    self._traces.setdefault(engine, []).append(number)

    async def _send(self, event: Event) -> None:
        async with self._sending, asyncio.timeout(SEND_SECONDS):
            await self._socket.send_text(msgspec.json.encode(event).decode())
