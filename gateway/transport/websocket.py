"""The main door: the Responses API in WebSocket mode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog
from starlette.websockets import WebSocket

from gateway.auth.principal import Principal
from gateway.conversations.unstored import Unstored
from gateway.errors import ApiError, EngineUnavailableError, InternalError, InvalidRequestError, RateLimitExceededError
from gateway.observability.faults import as_api_error, report
from gateway.protocol.events import Event, refusal, retold
from gateway.protocol.lanes import Lanes
from gateway.protocol.log import Reader
from gateway.protocol.outbox import Outbox
from gateway.protocol.received import Received, lane_of, receive
from gateway.protocol.requests import ResponseCancel, ResponseCreate, ResponseResume, convert, decode, parse
from gateway.protocol.steering import (
    ResponseSteer,
    Steer,
    SteerError,
    Steering,
    accepted,
    failed,
    pending,
    required_input,
    steered,
    successor,
)
from gateway.responses.registry import STOPPING, Responses, Running
from gateway.responses.services import new_id
from gateway.transport.intake import Intake, owner
from gateway.transport.sending import Sender

log = structlog.get_logger("websocket")

RESTARTING: Final = 1012
"""The close code on which clients connect again: service restart."""
FAILED: Final = 1011
"""The close code for a fault of the server."""
SMALL: Final = 1 << 16
"""Bytes of a message that is decoded at once: about 4 ms at worst. Larger ones take turns between all connections."""


class Connection:
    """One socket. It reads and never waits for an answer; a writer is at work while there is something to send."""

    def __init__(
        self,
        responses: Responses,
        socket: WebSocket,
        *,
        principal: Principal,
        heard: Callable[[], None],
        intake: Intake,
    ) -> None:
        """Serve `socket`, accepted already, for `caller`; `heard` counts messages, and may refuse one."""
        self._responses = responses
        self._socket = socket
        self._sender = Sender(socket)
        self._principal = principal
        self._heard = heard
        self._decoding = intake.decoding
        self._lanes: Lanes[Received] = Lanes(backlog=intake.backlog, owner=owner(socket, principal))
        self._outbox = Outbox(self._wake, self._fell_behind, self._delivered)
        self._held: dict[Reader, Running] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._steering = Steering()
        self._unstored = Unstored()
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._flooded = False
        """Whether the last refusal was for coming too fast."""
        self._lost = True
        """Whether the socket ended without a close frame."""

    async def serve(self) -> None:
        """Until the client leaves: on purpose, which ends what it asked for, or lost, and then it may come back."""
        self._reader = asyncio.create_task(self._read())
        self._responses.on_closing.add(self._closing)
        if self._responses.closing:
            self._closing()
        try:
            await asyncio.wait({self._reader})
            if not self._reader.cancelled() and (error := self._reader.exception()) is not None:
                await self._fail(error)
        finally:
            self._responses.on_closing.discard(self._closing)
            tasks = {self._reader, *self._starting} | ({self._writer} if self._writer is not None else set())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._lanes.clear()
            self._outbox.close()
            for running in self._held.values():
                running.let_go(lost=self._lost)
            self._unstored.close()

    async def _read(self) -> None:
        while True:
            frame = await self._socket.receive()
            if frame["type"] == "websocket.disconnect":
                # uvicorn gives a lost connection the code of a close frame without one, but no reason.
                self._lost = "reason" not in frame
                return
            # As bytes: a text with one character beyond the BMP takes four times as much.
            self._hear((frame.get("text") or "").encode() or frame.get("bytes") or b"")
            if self._outbox.full and self._writer is not None:
                await asyncio.wait({self._writer})

    def _hear(self, data: bytes) -> None:
        named: dict[str, str] = {}
        try:
            try:
                received = receive(data)
                named = received.address
            finally:
                self._heard()  # only now, so that its refusal names the lane, too
            self._take(received)
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection lives on
            self._refuse(error, named)

    def _take(self, received: Received) -> None:
        """Act on a message, or line it up in its lane as it came. Raises ApiError."""
        if received.kind == "response.steer":
            self._steer(decode(received.data))
            return
        if received.kind not in ("response.create", "response.resume"):
            message = parse(received.data)
            assert isinstance(message, ResponseCancel)  # noqa: S101 - for the type checker: `parse` knows no other
            self._cancel(message.response_id)
            return
        if self._responses.closing and received.kind == "response.create":
            raise EngineUnavailableError(STOPPING)
        self._lanes.add(lane_of(received), received, len(received.data))
        self._begin()

    def _count(self, error: ApiError) -> None:
        self._responses.services.metrics.rejected(ResponseCreate.route, error.code)

    def _cancel(self, response: str) -> None:
        running = self._responses.find(self._principal, response)
        if running is None or running.ended:
            raise InvalidRequestError(f"{response} is not running", param="response_id")
        running.turn.end()

    def _steer(self, raw: dict[str, Any]) -> None:
        """Say a word to a response that runs here: it ends, and a successor answers."""
        if not isinstance(raw.get("previous_response_id"), str) or "input" not in raw:
            convert(raw, ResponseSteer)  # names what is missing
        held = [item for item in self._held.items() if item[1].turn.id == raw["previous_response_id"]]
        try:
            if not held:
                raise SteerError("response_not_found", "no such response runs on this connection")
            self._accept(convert(raw, ResponseSteer), held[0][1])
        except (SteerError, InvalidRequestError) as error:
            refused = error if isinstance(error, SteerError) else SteerError("invalid_input", error.message)
            lane, number = (held[0][0].stream_id, held[0][1].log.end) if held else (None, 0)
            self._note(failed(refused, raw, number=number), lane)

    def _accept(self, message: ResponseSteer, running: Running) -> None:
        if running.ended:
            raise SteerError("response_already_completed", "the response has ended; continue it with response.create")
        if running.turn.request.prepares:
            raise SteerError("steering_not_supported", "nothing is answered that could be steered")
        steer = Steer(new_id("steer"), message)
        self._steering.add(steer)
        running.log.append(accepted(steer))
        running.turn.end("steered")

    def _begin(self) -> None:
        """Start all that need not wait for their lane."""
        while (next_one := self._lanes.begin()) is not None:
            lane, received = next_one
            if len(received.data) > SMALL:
                self._spawn(self._decode(lane, received))
            elif (message := self._decoded(lane, received)) is not None:
                self._spawn(self._start(lane, message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _decode(self, lane: str | None, received: Received) -> None:
        """Decode and start a large message when no other one is being decoded."""
        async with self._decoding:
            await asyncio.sleep(0)
            message = self._decoded(lane, received)
        if message is None:
            self._begin()
        else:
            await self._start(lane, message)

    def _decoded(self, lane: str | None, received: Received) -> ResponseCreate | ResponseResume | None:
        """A message whose turn has come; None when it is refused, and then its lane is free again."""
        try:
            message = parse(received.data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the lane goes on
            self._refuse(error, received.address)
        else:
            if not isinstance(message, ResponseCancel):
                return message
        self._lanes.end(lane)
        return None

    async def _start(
        self, lane: str | None, message: ResponseCreate | ResponseResume, steers: Sequence[Steer] = ()
    ) -> None:
        """Run a request on its lane; `steers` are those that it says, when it is a successor."""
        try:
            if isinstance(message, ResponseResume):
                found = await self._find(message)
            else:
                if waiting := self._steering.take(message.previous_response_id):
                    message = steered(message, waiting)
                running = await self._responses.start(message, principal=self._principal, unstored=self._unstored)
                found = (running, Reader(running.log, stream_id=lane))
        except Exception as error:  # noqa: BLE001 - whatever it is, the lane goes on
            if steers:
                refused = as_api_error(error, new_id("req"))
                self._count(refused)
                self._give_back(steers, SteerError("successor_creation_failed", refused.message), lane)
            else:
                self._refuse(error, _address(message))
            found = None
        if found is None:
            self._lanes.end(lane)
            self._begin()
        else:
            running, reader = found
            self._held[reader] = running
            self._outbox.attach(reader)

    async def _find(self, message: ResponseResume) -> tuple[Running, Reader] | None:
        """The response to go on with; None when it ended so long ago that there is only its end to tell."""
        response, after = message.response_id, -1 if message.starting_after is None else message.starting_after
        running = await self._responses.find_kept(self._principal, response)
        if running is not None:
            return running, running.resume(after, stream_id=message.stream_id)
        event = retold((await self._responses.record(self._principal, response)).response, number=after + 1)
        self._note(event, message.stream_id)
        return None

    def _delivered(self, reader: Reader) -> None:
        """A response's last event is given out. Its lane was taken until now, so that what is unread stays bounded."""
        running = self._held.pop(reader)
        running.let_go(lost=False)
        try:
            goes_on = self._succeed(running, reader.stream_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, the lane goes on
            goes_on = False
            self._refuse(error, {} if reader.stream_id is None else {"stream_id": reader.stream_id})
        if not goes_on:
            self._lanes.end(reader.stream_id)
            self._begin()

    def _succeed(self, running: Running, lane: str | None) -> bool:
        """Start the successor of a response that was steered, on the same lane; False when there is none now."""
        parent, response = running.turn.id, running.turn.response
        steers = self._steering.waiting(parent)
        if not steers:
            return False
        required = required_input(response)
        if required and response["status"] == "completed":
            for steer in steers:
                self._note(pending(steer, required, number=running.log.end), lane)
            return False
        self._steering.take(parent)
        if response["status"] in ("failed", "cancelled"):
            error = SteerError("response_not_active", f"the response {response['status']} before it could be steered")
            self._give_back(steers, error, lane)
            return False
        self._spawn(self._start(lane, successor(running.turn.request, parent, steers), steers))
        return True

    def _give_back(self, steers: Sequence[Steer], error: SteerError, lane: str | None) -> None:
        for steer in steers:
            self._note(failed(error, msgspec.to_builtins(steer.message), number=0, steer=steer.id), lane)

    def _note(self, event: Event, lane: str | None) -> None:
        self._outbox.note(event if lane is None else {**event, "stream_id": lane})

    def _refuse(self, error: Exception, named: Mapping[str, str]) -> None:
        """Tell that a message was not taken, and leave its number in the log: what it said stays out of that."""
        number = new_id("req")
        refused = as_api_error(error, number)
        self._count(refused)
        flood = isinstance(refused, RateLimitExceededError)
        if not (self._flooded and flood):  # of a flood only its beginning
            log.info("refused", request_id=number, code=refused.code, tenant=self._principal.shown)
        self._flooded = flood
        self._outbox.note(refusal(refused, request_id=number, **named))

    def _fell_behind(self, reader: Reader) -> None:
        self._held[reader].fell_behind()

    def _closing(self) -> None:
        """The gateway stops: what runs may end, what waits is refused, and then the client is sent away."""
        for _, received in self._lanes.clear():
            self._refuse(EngineUnavailableError(STOPPING), received.address)
        self._wake()

    def _wake(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Send until there is nothing left to send."""
        try:
            while (event := self._outbox.next()) is not None:
                await self._sender.send(event if isinstance(event, bytes) else self._encoded(event))
            if self._responses.closing and self._lanes.idle and self._outbox.empty:
                await self._sender.close(RESTARTING, "the gateway restarts; connect again")
        except ConnectionError:
            self._leave()
        except Exception as error:  # noqa: BLE001 - nothing more can be sent, so that the client must connect again
            await self._fail(error)
            self._leave()

    async def _fail(self, error: BaseException) -> None:
        """Close the connection for a fault of the gateway's own; the client may connect again and resume."""
        self._count(report(error, new_id("req")))
        with suppress(ConnectionError):
            await self._sender.close(FAILED, InternalError.code)

    def _leave(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    def _encoded(self, event: Event) -> bytes:
        """An event as JSON, or an error in its place if it cannot be written."""
        try:
            return msgspec.json.encode(event)
        except Exception as error:  # noqa: BLE001 - the client must not wait for it in vain
            number = new_id("req")
            fault = report(error, number)
            self._count(fault)
            named = {"stream_id": event.get("stream_id"), "response_id": event.get("response", {}).get("id")}
            address = {name: value for name, value in named.items() if value is not None}
            return msgspec.json.encode(refusal(fault, request_id=number, **address))


def _address(message: ResponseCreate | ResponseResume) -> dict[str, str]:
    """The lane and the response that it names."""
    named = {"stream_id": message.stream_id}
    if isinstance(message, ResponseResume):
        named["response_id"] = message.response_id
    return {name: value for name, value in named.items() if value is not None}
