"""The main endpoint: the Responses API in WebSocket mode."""

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
from gateway.protocol.events import Event, KeepAlive, ResponseEvent, on_lane, refusal, terminal_event
from gateway.protocol.lanes import Lanes
from gateway.protocol.log import Reader
from gateway.protocol.outbox import Outbox
from gateway.protocol.received import Received, lane_of, receive
from gateway.protocol.requests import ClientMessage, ResponseCancel, ResponseCreate, ResponseResume, convert, decode
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
from gateway.responses.cancellation import Cause
from gateway.responses.keep_alive import SilenceTimer
from gateway.responses.registry import STOPPING, Responses
from gateway.responses.runner import Running
from gateway.responses.services import new_id
from gateway.transport.changes import ANSWERED, Changes, next_change, parse_message
from gateway.transport.intake import SMALL, Intake, owner
from gateway.transport.sending import Sender

log = structlog.get_logger("websocket")

RESTARTING: Final = 1012
"""Close code for a service restart, after which clients reconnect."""
FAILED: Final = 1011
"""Close code for an internal error of the server."""


class Connection:
    """One WebSocket. The reader never waits for a response; a writer task runs while there is something to send."""

    def __init__(
        self,
        responses: Responses,
        socket: WebSocket,
        *,
        principal: Principal,
        count_message: Callable[[], None],
        intake: Intake,
    ) -> None:
        """Serve the accepted `socket` for `principal`; `count_message` counts messages, and raises to reject one."""
        self._responses = responses
        self._socket = socket
        self._sender = Sender(socket)
        self._principal = principal
        self._count_message = count_message
        self._pacer = intake.pacer
        self._owner = owner(socket, principal)
        self._lanes: Lanes[Received] = Lanes(backlog=intake.backlog, owner=self._owner)
        self._outbox = Outbox(self._wake, self._on_lag, self._delivered)
        self._held: dict[Reader, Running] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._steering = Steering()
        self._unstored = Unstored(responses.services.pool.forget)
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._silence = SilenceTimer(responses.keep_alive, self._keep_alive)
        """Runs while a lane is in use."""
        self._changes: Changes | None = None
        self._flooded = False
        """Whether the last rejection was for exceeding the message rate."""
        self._lost = True
        """Whether the connection ended without a close frame."""

    async def serve(self) -> None:
        """Serve until the client disconnects.

        A close frame cancels the client's responses. After a lost connection they run on for `resume_grace`.
        """
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
            self._silence.stop()
            for running in self._held.values():
                running.release(lost=self._lost)
            self._unstored.close()
            if self._changes is not None:
                self._changes.close()

    async def _read(self) -> None:
        while True:
            frame = await self._socket.receive()
            if frame["type"] == "websocket.disconnect":
                # uvicorn reports a lost connection with the code of an empty close frame, but without a reason.
                self._lost = "reason" not in frame
                return
            # As bytes: a str with one character beyond the BMP takes four times as much memory.
            data = (frame.pop("text", None) or "").encode() or frame.pop("bytes", None) or b""
            if len(data) > SMALL:
                await self._pacer.turn(self._owner)
                with self._pacer.work():
                    self._receive(data)
            else:
                self._receive(data)
            if self._outbox.full and self._writer is not None:
                await asyncio.wait({self._writer})

    def _receive(self, data: bytes) -> None:
        named: dict[str, str] = {}
        try:
            try:
                received = receive(data)
                named = received.address
            finally:
                self._count_message()  # after `receive`, so that a rejection names the lane
            self._dispatch(received)
        except Exception as error:  # noqa: BLE001 - the connection must survive any error
            self._refuse(error, named)

    def _dispatch(self, received: Received) -> None:
        """Handle a message, or queue it undecoded in its lane. Raises ApiError."""
        if received.kind == "response.steer":
            self._steer(decode(received.data))
            return
        if received.kind in ANSWERED:
            self._changes = self._changes or Changes(self._responses, self._principal, self._wake)
            self._outbox.add_notice(self._changes.answer(received))
            return
        if received.kind not in ("response.create", "response.resume"):
            message = self._parse(received)
            assert isinstance(message, ResponseCancel)  # noqa: S101 - for the type checker: no other type is left
            self._cancel(message.response_id)
            return
        if self._responses.closing and received.kind == "response.create":
            raise EngineUnavailableError(STOPPING)
        self._lanes.add(lane_of(received), received, len(received.data))
        self._start_ready()
        self._silence.start()

    def _keep_alive(self) -> None:
        """Send `keepalive` on each lane whose request has no response yet; a response emits its own."""
        if self._lanes.idle:
            self._silence.stop()
        for lane in self._lanes.in_use - {reader.stream_id for reader in self._held}:
            self._send_notice(KeepAlive(), lane)

    def _count(self, error: ApiError) -> None:
        self._responses.services.metrics.rejected(ResponseCreate.route, error.code)

    def _cancel(self, response: str) -> None:
        running = self._responses.find_response(self._principal, response)
        if running is None or running.ended:
            raise InvalidRequestError(f"{response} is not running", param="response_id")
        running.end()

    def _steer(self, raw: dict[str, Any]) -> None:
        """Steer a response that runs on this connection: it ends, and a successor continues it."""
        if not isinstance(raw.get("previous_response_id"), str) or "input" not in raw:
            convert(raw, ResponseSteer)  # raises with the name of the missing field
        held = [item for item in self._held.items() if item[1].id == raw["previous_response_id"]]
        try:
            if not held:
                raise SteerError("response_not_found", "this connection has no such running response")
            self._accept(convert(raw, ResponseSteer), held[0][1])
        except (SteerError, InvalidRequestError) as error:
            failure = error if isinstance(error, SteerError) else SteerError("invalid_input", error.message)
            lane, number = (held[0][0].stream_id, held[0][1].log.end) if held else (None, 0)
            self._send_notice(failed(failure, raw, number=number), lane)

    def _accept(self, message: ResponseSteer, running: Running) -> None:
        if running.ended:
            raise SteerError("response_already_completed", "the response has ended; continue it with `response.create`")
        if running.request.encodes_only:
            raise SteerError(
                "steering_not_supported", "the request only encodes its context; there is no answer to steer"
            )
        steer = Steer(new_id("steer"), message)
        self._steering.add(steer)
        running.log.append(accepted(steer))
        running.end(Cause.STEERING)

    def _start_ready(self) -> None:
        """Start every request that need not wait for its lane."""
        while (ready := self._lanes.begin()) is not None:
            lane, received = ready
            if len(received.data) > SMALL:
                self._spawn(self._decode(lane, received))
            elif (message := self._decoded(lane, received)) is not None:
                self._spawn(self._start(lane, message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _decode(self, lane: str | None, received: Received) -> None:
        """Decode a large message when it is its turn, and start it."""
        await self._pacer.turn(self._owner)
        with self._pacer.work():
            message = self._decoded(lane, received)
        if message is None:
            self._start_ready()
        else:
            await self._start(lane, message)

    def _decoded(self, lane: str | None, received: Received) -> ResponseCreate | ResponseResume | None:
        """Return the decoded message; None after rejecting it and freeing its lane."""
        try:
            message = self._parse(received)
        except Exception as error:  # noqa: BLE001 - the lane must survive any error
            self._refuse(error, received.address)
        else:
            if not isinstance(message, ResponseCancel):
                return message
        self._lanes.end(lane)
        return None

    def _parse(self, received: Received) -> ClientMessage:
        return parse_message(received, strict_fields=self._responses.services.settings.strict_fields)

    async def _start(
        self, lane: str | None, message: ResponseCreate | ResponseResume, steers: Sequence[Steer] = ()
    ) -> None:
        """Start a request on its lane; `steers` are the ones that it carries if it is a successor."""
        try:
            if isinstance(message, ResponseResume):
                attached = await self._resume(message)
            else:
                if waiting := self._steering.take_steers(message.previous_response_id):
                    message = steered(message, waiting)
                running = await self._responses.start_response(
                    message, principal=self._principal, unstored=self._unstored
                )
                attached = (running, Reader(running.log, stream_id=lane))
        except Exception as error:  # noqa: BLE001 - the lane must survive any error
            if steers:
                api_error = as_api_error(error, new_id("req"))
                self._count(api_error)
                self._fail_steers(steers, SteerError("successor_creation_failed", api_error.message), lane)
            else:
                self._refuse(error, _address(message))
            attached = None
        if attached is None:
            self._lanes.end(lane)
            self._start_ready()
        else:
            running, reader = attached
            self._held[reader] = running
            self._outbox.attach(reader)

    async def _resume(self, message: ResponseResume) -> tuple[Running, Reader] | None:
        """Return the response and a reader; for one that ended long ago, send its last event and return None."""
        response, after = message.response_id, -1 if message.starting_after is None else message.starting_after
        running = await self._responses.find_undeleted(self._principal, response)
        if running is not None:
            return running, running.resume(after, stream_id=message.stream_id)
        turn = await self._responses.get_turn(self._principal, response)
        self._send_notice(terminal_event(turn.response, number=after + 1), message.stream_id)
        return None

    def _delivered(self, reader: Reader) -> None:
        """Handle the delivery of a response's last event.

        Its lane is occupied until now, so that a connection's unread events stay bounded.
        """
        running = self._held.pop(reader)
        running.release(lost=False)
        try:
            has_successor = self._start_successor(running, reader.stream_id)
        except Exception as error:  # noqa: BLE001 - the lane must survive any error
            has_successor = False
            self._refuse(error, {} if reader.stream_id is None else {"stream_id": reader.stream_id})
        if not has_successor:
            self._lanes.end(reader.stream_id)
            self._start_ready()

    def _start_successor(self, running: Running, lane: str | None) -> bool:
        """Start the successor of a steered response on the same lane; return False if there is none now."""
        parent, response = running.id, running.response
        steers = self._steering.waiting(parent)
        if not steers:
            return False
        required = required_input(response)
        if required and response["status"] == "completed":
            for steer in steers:
                self._send_notice(pending(steer, required, number=running.log.end), lane)
            return False
        self._steering.take_steers(parent)
        if response["status"] in ("failed", "cancelled"):
            error = SteerError("response_not_active", f"the response {response['status']} before it could be steered")
            self._fail_steers(steers, error, lane)
            return False
        self._spawn(self._start(lane, successor(running.request, parent, steers), steers))
        return True

    def _fail_steers(self, steers: Sequence[Steer], error: SteerError, lane: str | None) -> None:
        for steer in steers:
            self._send_notice(failed(error, msgspec.to_builtins(steer.message), number=0, steer=steer.id), lane)

    def _send_notice(self, event: Event, lane: str | None) -> None:
        self._outbox.add_notice(on_lane(event, lane))

    def _refuse(self, error: Exception, named: Mapping[str, str]) -> None:
        """Send the error of a rejected message, and log it under a request id without the message's content."""
        request_id = new_id("req")
        api_error = as_api_error(error, request_id)
        self._count(api_error)
        flood = isinstance(api_error, RateLimitExceededError)
        if not (self._flooded and flood):  # of a flood, only the first rejection is logged
            log.info("refused", request_id=request_id, code=api_error.code, tenant=self._principal.shown)
        self._flooded = flood
        self._outbox.add_notice(refusal(api_error, request_id=request_id, **named))

    def _on_lag(self, reader: Reader) -> None:
        self._held[reader].on_lag()

    def _closing(self) -> None:
        """Reject waiting requests because the gateway stops; close the socket once running responses have ended."""
        for _, received in self._lanes.clear():
            self._refuse(EngineUnavailableError(STOPPING), received.address)
        self._wake()

    def _wake(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Send events until none is left."""
        try:
            while (event := self._outbox.next() or await next_change(self._changes)) is not None:
                await self._sender.send(event if isinstance(event, bytes) else self._encoded(event))
            if self._responses.closing and self._lanes.idle and self._outbox.empty:
                await self._sender.close(RESTARTING, "the gateway restarts; connect again")
        except ConnectionError:
            self._stop_reading()
        except Exception as error:  # noqa: BLE001 - nothing more can be sent: the client must reconnect
            await self._fail(error)
            self._stop_reading()

    async def _fail(self, error: BaseException) -> None:
        """Close the connection after an internal error; the client may reconnect and resume."""
        self._count(report(error, new_id("req")))
        with suppress(ConnectionError):
            await self._sender.close(FAILED, InternalError.code)

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    def _encoded(self, event: Event) -> bytes:
        """Return an event as JSON, or an error instead if it cannot be encoded."""
        try:
            return msgspec.json.encode(event)
        except Exception as error:  # noqa: BLE001 - the client must not wait for a lost event
            request_id = new_id("req")
            fault = report(error, request_id)
            self._count(fault)
            response_id = event.response.get("id") if isinstance(event, ResponseEvent) else None
            error_event = refusal(fault, request_id=request_id, response_id=response_id, stream_id=event.stream_id)
            return msgspec.json.encode(error_event)


def _address(message: ResponseCreate | ResponseResume) -> dict[str, str]:
    """Return the lane and the response that a message names."""
    named = {"stream_id": message.stream_id}
    if isinstance(message, ResponseResume):
        named["response_id"] = message.response_id
    return {name: value for name, value in named.items() if value is not None}
