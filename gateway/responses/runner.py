"""One response, from its request to its last event."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final, Self

from msgspec.structs import replace

from cache import StoreError
from engine import EngineError
from gateway.auth.principal import Principal
from gateway.conversations.conversation import Entry
from gateway.conversations.prompt_builder import Context
from gateway.conversations.turns import Turn
from gateway.conversations.unstored import Unstored
from gateway.errors import ApiError, EngineUnavailableError, InvalidRequestError, StoreUnavailableError
from gateway.observability.faults import report
from gateway.protocol.answer import Answer
from gateway.protocol.events import Event, KeepAlive, Usage
from gateway.protocol.ids import ItemIds
from gateway.protocol.log import EventLog, Reader
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.response_events import Ending
from gateway.responses.cancellation import Cancellation, Cause
from gateway.responses.generation import Generation
from gateway.responses.keep_alive import KEEP_ALIVE, SilenceTimer
from gateway.responses.measurements import Measurements
from gateway.responses.preparation import prepare, with_ignored
from gateway.responses.progress import PromptProgressReport
from gateway.responses.response_object import response_events
from gateway.responses.services import Services, new_id, new_response_id
from gateway.responses.timings import Timings
from gateway.responses.turn_writer import TurnWriter, turn
from gateway.scheduling.fair_queue import Ticket
from gateway.scheduling.placement import Placement

QUEUED_EVERY: Final = 1.0
"""Minimum seconds between two `response.queued` events of a request."""
STOPPED: Final = "the gateway stopped before the answer was complete; try again in a moment"
SEEDS: Final = 1 << 63
"""Number of seeds that a request can have."""
TOO_SLOW: Final = "the client read too slowly: more than 1 MiB of events were waiting"


class Running:
    """One response and its events, exactly one of which is terminal.

    It runs while a client holds it, and after a lost connection for a grace period. In the background it runs to its
    end.
    """

    def __init__(
        self,
        services: Services,
        request: ResponseCreate,
        context: Context,
        ticket: Ticket,
        *,
        unstored: Unstored,
        arrived: float,
        grace: float,
        keep_alive: float,
    ) -> None:
        """Emit `response.created` and start; the caller holds the response. The `ticket` has already been admitted.

        `arrived` is in monotonic seconds; `grace` is in seconds, counted from the loss of the last holder. After
        `keep_alive` seconds without an event, `keepalive` is emitted.
        """
        self.id = new_response_id()
        self.request = request
        self.principal = ticket.principal
        self.log = EventLog(on_fault=lambda error: report(error, new_id("req")))
        self.error: ApiError | None = None
        """The error with which the response failed, if it has."""
        self._publish = self.log.append
        self._services = services
        self._context = context
        self._ticket = ticket
        self._unstored = unstored
        self._silence = SilenceTimer(keep_alive, lambda: self._publish(KeepAlive()))
        self.log.watchers.add(self._silence.reset)
        self._cancellation = Cancellation()
        self._cancellation.add_callback(self._leave_queue)
        self._events = response_events(services, request, self.id, ticket, context)
        self._answer = Answer(self._events, form=context.form, new_id=ItemIds(self.id))
        progress = PromptProgressReport(request, len(context.ids), self._events, self._publish)
        self._generation = Generation(
            services, request, context, ticket, self._cancellation, self._answer, self._on_text, progress.update
        )
        self._writer = TurnWriter(services.sessions, services.histories, unstored, self.principal.tenant, request)
        self._measurements = Measurements(services.metrics, self.id, self.principal.shown, request.route, arrived)
        self.entry: Entry | None = None
        """The response as a turn of its conversation, if it has one; set by `ConversationTurns`."""
        self.retained = 0
        """Bytes that the response takes after its end, counted by `Responses`."""
        self._grace = grace
        self._holders = 2 if request.background else 1
        """The clients that read the events, and the gateway if the response runs in the background."""
        self._timer: asyncio.TimerHandle | None = None
        services.activity.turn(request.previous_response_id, self.id)
        self._publish(self._events.created())
        self._silence.start()
        self.task = asyncio.create_task(self._run())
        """Done when the response has ended."""

    @classmethod
    async def begin(
        cls,
        services: Services,
        request: ResponseCreate,
        count: int,
        *,
        principal: Principal,
        unstored: Unstored,
        check_open: Callable[[], None],
        grace: float,
        keep_alive: float = KEEP_ALIVE,
    ) -> list[Self]:
        """Validate a request, and queue and start `count` responses to its prompt; each adds its number to the seed.

        Each is admitted and charged separately. Raises ApiError if one of them is rejected; then none starts.
        `unstored` holds the connection's responses with `store: false`. `check_open` raises ApiError if the gateway
        began to stop while the prompt was being encoded. There is no `await` between this check and the return.
        """
        arrived = time.monotonic()
        context, demand = await prepare(services, request, principal, unstored)
        check_open()
        request = with_ignored(request, context.form.ignored, strict=services.settings.strict_fields)
        if count > 1:
            demand = dataclasses.replace(demand, group=new_id("group"))
        tickets: list[Ticket] = []
        with ExitStack() as rejected:
            for _ in range(count):
                ticket = services.admission.enter(
                    demand, principal, ahead=request.encodes_only, idle=bool(request.when_idle)
                )
                rejected.callback(services.admission.leave, ticket)
                tickets.append(ticket)
            rejected.pop_all()
        return [
            cls(
                services,
                _seeded(request, number),
                context,
                ticket,
                unstored=unstored,
                arrived=arrived,
                grace=grace,
                keep_alive=keep_alive,
            )
            for number, ticket in enumerate(tickets)
        ]

    @property
    def response(self) -> dict[str, Any]:
        """The response object as it stands."""
        return self._events.response

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return self._generation.usage

    @property
    def timings(self) -> Timings:
        """When the answer reached its stages."""
        return self._generation.timings

    @property
    def failure(self) -> ApiError | None:
        """The error for a client that does not stream, which could mistake a partial answer for the whole one."""
        cut = self._cancellation.cause is Cause.SHUTDOWN and self.response["status"] == "cancelled"
        return EngineUnavailableError(STOPPED) if cut else self.error

    @property
    def ended(self) -> bool:
        """Whether the terminal event has been emitted."""
        return self.log.terminal is not None

    @property
    def is_ending(self) -> bool:
        """Whether the answer is complete, but not stored yet."""
        return not self.ended and self.response["status"] not in ("queued", "in_progress")

    async def store(self) -> None:
        """Store the response as it stands, so that it is found after a crash. Raises StoreUnavailableError."""
        try:
            await self._services.sessions.begin(self.principal.tenant, self.record, None)
        except StoreError as error:
            raise StoreUnavailableError(f"the response cannot be stored: {error}") from error

    def resume(self, after: int, *, stream_id: str | None = None) -> Reader:
        """Hold the response, and return a reader of the events after number `after`. Raises InvalidRequestError."""
        if after + 1 < self.log.first:
            raise InvalidRequestError(
                f"starting_after: events before {self.log.first} are no longer stored; retrieve the response instead",
                param="starting_after",
            )
        if after >= self.log.end or (self.ended and after == self.log.end - 1):
            raise InvalidRequestError(
                f"starting_after: the last event so far is {self.log.end - 1}", param="starting_after"
            )
        self.hold()
        return Reader(self.log, after=after, stream_id=stream_id)

    def hold(self) -> None:
        """Add a holder, a client that reads the events."""
        self._holders += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def release(self, *, lost: bool) -> None:
        """Remove a holder. Without one the response ends, after the grace period if the connection was `lost`."""
        self._holders -= 1
        if self._holders > 0 or self.ended:
            return
        if lost and self._grace > 0 and self.request.is_stored:
            reason = f"its connection was lost, and no client resumed it within {self._grace:g} s"
            self._timer = asyncio.get_running_loop().call_later(self._grace, self.end, Cause.CLIENT, reason)
        else:
            self.end()

    def stop(self) -> None:
        """End the response because the gateway stops."""
        self.end(Cause.SHUTDOWN, "the gateway is stopping")

    def on_lag(self) -> None:
        """End the response if its only holder read so slowly that events were dropped."""
        if self._holders == 1:
            self.end(Cause.CLIENT, TOO_SLOW)

    def end(self, cause: Cause = Cause.CLIENT, explanation: str | None = None) -> None:
        """End the response within one step as `incomplete`, with its terminal event."""
        self._cancellation.cancel(cause, explanation)

    async def _run(self) -> None:
        try:
            await self._respond()
        except Exception as error:  # noqa: BLE001 - `_respond` could not emit its own failure
            self._emit_failure(report(error, self.id))
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._silence.stop()
            self._emit_failure(EngineUnavailableError("the gateway could not finish this answer; try again"))

    def _emit_failure(self, error: ApiError) -> None:
        """Emit `response.failed` if there is no terminal event yet."""
        if not self.ended:
            self.error = error
            self._count("failed", error.code)
            self._emit_ending(self._events.failed(error))

    async def _respond(self) -> None:
        """Generate the response; failures become events."""
        storing = asyncio.create_task(self._writer.run(lambda: self._answer.text, self._unfinished))
        try:
            placement = await self._place()
            if placement is not None and self._cancellation.cause is None:
                await self._generate(placement)
            await self._finish(placement)
        except ApiError as error:
            await self._fail(error)
        except EngineError as error:
            self._services.penalties.blame(self.principal.user, self._generation.blame)
            await self._fail(EngineUnavailableError(f"the engine failed: {error}; try again"))
        except Exception as error:  # noqa: BLE001 - an internal error also ends the response with an event
            await self._fail(report(error, self.id))
        finally:
            storing.cancel()
            taken = self._generation.taken
            self._services.admission.leave(self._ticket, taken)
            self._services.registry.record_usage(self.principal, taken.tokens)

    def _leave_queue(self) -> None:
        if self._ticket.place is None:
            self._services.admission.leave(self._ticket)

    async def _unfinished(self, text: str) -> tuple[Turn, list[int] | None]:
        """Return the turn so far, and the ids from which it can be continued: None while the answer is empty."""
        record = self.record
        if not text:
            return record, None
        response = {**record.response, "usage": self._generation.usage.body()}
        return replace(record, response=response), await self._ids(text)

    async def _ids(self, text: str) -> list[int] | None:
        """Return the ids of the prompt and of the answer's `text`; None if they cannot be determined now."""
        ids = await self._generation.visible_ids(text)
        return None if ids is None else self._context.ids + ids

    async def _place(self) -> Placement | None:
        """Wait for a placement, and emit queue positions; return None if the request ends meanwhile."""
        admission, ticket, emitted = self._services.admission, self._ticket, 0
        while not ticket.placed.done():
            if emitted != (position := admission.position(ticket)):
                emitted = position
                self._publish(self._events.queued(position, admission.estimate(ticket)))
            await asyncio.wait({ticket.placed}, timeout=QUEUED_EVERY)
        if ticket.placed.cancelled():
            return None
        placement = ticket.placed.result()
        self._measurements.placed()
        return placement

    async def _generate(self, placement: Placement) -> None:
        self._services.registry.check_allowance(self.principal)  # the queue may have lasted longer than it
        self._publish(self._events.in_progress())
        if not self.request.encodes_only:
            self._emit(self._answer.begin())
        try:
            await self._generation.run(placement)
            if not self.request.encodes_only:
                self._emit(self._answer.finish())
        finally:
            if self.request.is_ephemeral:
                for engine, number in self._generation.traces:
                    self._unstored.add_cells(engine, number)

    def _on_text(self, text: str, logprobs: list[dict[str, Any]]) -> None:
        self._emit(self._answer.feed(text, logprobs))
        self._measurements.emitted(self._generation.cache)

    async def _finish(self, placement: Placement | None) -> None:
        """Store the turn, then emit the terminal event: every acknowledged turn is on disk."""
        (closing, last), status = self._last()
        self._emit(closing)
        dropped = await self._writer.save(self.record, await self._ids(self._answer.text))
        if dropped:
            self._services.metrics.dropped_turns.inc(dropped)
            own = {**last.response.get("samovar", {}), "dropped_turns": dropped}
            last = replace(last, response={**last.response, "samovar": own})
        if placement is not None:
            self._services.dispatcher.settle(self.id, placement)
            self._measurements.computed(self._generation.usage, fetched=self._generation.fetched)
        self._count(status)
        self._publish(last)

    def _last(self) -> tuple[Ending, str]:
        """Return the last events, and the status for the metrics."""
        generation, events = self._generation, self._events
        prepared = self.request.encodes_only and generation.reason == "length"
        if generation.stopped or prepared or (generation.reason == "stop" and self._cancellation.cause is None):
            return events.completed(generation.usage, generation.stop), "completed"
        if generation.reason == "length":
            return events.incomplete(generation.usage, "max_output_tokens"), "incomplete"
        reason = self._cancellation.reason
        status = "cancelled" if reason == "cancelled" else "incomplete"
        return events.incomplete(generation.usage, reason, self._cancellation.explanation), status

    @property
    def record(self) -> Turn:
        """The turn as it stands, in the form in which it is stored."""
        return turn(self.request, self._context, self.response)

    async def _fail(self, error: ApiError) -> None:
        self.error = error
        ending = self._events.failed(error)
        with suppress(StoreUnavailableError):  # a failed turn need not be stored
            await self._writer.save(self.record, None)
        self._count("failed", error.code)
        self._emit_ending(ending)

    def _emit(self, events: Sequence[Event]) -> None:
        for event in events:
            self._publish(event)

    def _emit_ending(self, ending: Ending) -> None:
        closing, last = ending
        self._emit([*closing, last])

    def _count(self, status: str, code: str = "") -> None:
        engines = (engine.name for engine, _ in self._generation.traces)
        self._measurements.ended(status, code, self._generation.usage, engines)


def _seeded(request: ResponseCreate, number: int) -> ResponseCreate:
    """Return the request of a group's response: its number is added to the seed."""
    return request if request.seed is None else replace(request, seed=(request.seed + number) % SEEDS)
