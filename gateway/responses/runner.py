"""One turn of a conversation, from the request to its last event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import structlog
from msgspec.structs import replace

from cache import StoreError
from engine import EngineError
from gateway.auth.principal import Principal
from gateway.conversations.turns import Turn
from gateway.conversations.unstored import Unstored
from gateway.errors import ApiError, EngineUnavailableError, StoreUnavailableError
from gateway.observability.faults import report
from gateway.protocol.answer import Answer
from gateway.protocol.events import Event
from gateway.protocol.items import messages
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.response_events import Ending, ResponseEvents
from gateway.responses.generation import Generation
from gateway.responses.preparation import Prepared, prepare
from gateway.responses.services import Services, new_id
from gateway.scheduling.admission import Ticket
from gateway.scheduling.dispatcher import Demand, Placement
from gateway.scheduling.fair_queue import Work

log = structlog.get_logger("responses")

QUEUED_EVERY: Final = 1.0
"""Minimum seconds between two `response.queued` events of a request."""
QUEUED_AGAIN: Final = 15.0
"""Maximum seconds between two `response.queued` events, so that clients and proxies do not drop a silent stream."""
STORED_EVERY: Final = 1.0
"""Seconds between two writes of an unfinished answer, so the most of it that a crash of the gateway loses."""


class TurnRunner:
    """Runs one request: `begin` validates and queues it; `run` emits its events, with exactly one terminal event."""

    def __init__(
        self,
        services: Services,
        request: ResponseCreate,
        prepared: Prepared,
        ticket: Ticket[Demand, Placement],
        *,
        principal: Principal,
        unstored: Unstored,
        publish: Callable[[Event], None],
        arrived: float,
    ) -> None:
        """Emit `response.created`. The `ticket` has already been admitted; `arrived` is in monotonic seconds."""
        self.id = new_id("resp")
        self.request = request
        self.error: ApiError | None = None
        """The error with which the response failed, if it has."""
        self._services = services
        self._prepared = prepared
        self._ticket = ticket
        self._principal = principal
        self._unstored = unstored
        self._publish = publish
        self._arrived = arrived
        self._events = self._shape()
        self._answer = Answer(self._events, form=prepared.form, new_id=new_id)
        self._generation = Generation(services, request, prepared, principal, self._on_text)
        self._queued: float | None = None
        """Seconds in the queue, once the request has an engine."""
        self._first: float | None = None
        """Seconds from arrival to the first delta."""
        self._ending: tuple[str, str | None] | None = None
        """Reason for an early end, and an optional explanation."""
        services.activity.turn(request.previous_response_id, self.id)
        publish(self._events.created())

    @classmethod
    async def begin(
        cls,
        services: Services,
        request: ResponseCreate,
        *,
        principal: Principal,
        unstored: Unstored,
        publish: Callable[[Event], None],
    ) -> Self:
        """Validate a request and put it into the queue. Raises ApiError.

        `unstored` holds the connection's responses with `store: false`.
        """
        arrived = time.monotonic()
        services.penalties.check(principal.user)
        prepared = await prepare(services, request, principal, unstored)
        context = prepared.context
        stored = not request.is_ephemeral and services.pool.stores
        demand = Demand(prepared.cells, prepared.previous, len(context.ids), context.known, stored=stored)
        ticket = services.admission.enter(demand, principal, prepared.work, ahead=request.encodes_only)
        return cls(
            services,
            request,
            prepared,
            ticket,
            principal=principal,
            unstored=unstored,
            publish=publish,
            arrived=arrived,
        )

    @property
    def response(self) -> dict[str, Any]:
        """The response object as it stands."""
        return self._events.response

    async def run(self) -> None:
        """Generate the response; failures become events."""
        storing = asyncio.create_task(self._store_progress())
        try:
            placement = await self._place()
            if placement is not None and self._ending is None:
                await self._generate(placement)
            await self._finish(placement)
        except ApiError as error:
            await self._fail(error)
        except EngineError as error:
            self._services.penalties.blame(self._principal.user, self._generation.blame)
            await self._fail(EngineUnavailableError(f"the engine failed: {error}; try again"))
        except Exception as error:  # noqa: BLE001 - an internal error also ends the response with an event
            await self._fail(report(error, self.id))
        finally:
            storing.cancel()
            usage = self._generation.usage
            self._services.admission.leave(self._ticket, Work(usage.input - usage.cached, usage.output))
            self._services.registry.record_usage(self._principal, usage.input + usage.output)

    def emit_failure(self, error: ApiError) -> None:
        """Emit `response.failed` if `run` could not."""
        self.error = error
        self._count("failed", error.code)
        self._emit_ending(self._events.failed(error))

    def end(self, reason: str = "cancelled", explanation: str | None = None) -> None:
        """End the response within one step as `incomplete` for `reason`; `run` still emits the terminal event."""
        if self._ending is None:
            self._ending = (reason, explanation)
        if self._ticket.place is None:
            self._services.admission.leave(self._ticket)
        self._generation.abort()

    def _shape(self) -> ResponseEvents:
        services, sampling = self._services, self._services.model.sampling(self.request)
        return ResponseEvents(
            self.request,
            response_id=self.id,
            model=services.model.entry.name,
            clock=services.clock,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_output_tokens=self._prepared.limit or services.settings.max_output_tokens,
            ignored=self._prepared.form.ignored,
        )

    async def _store_progress(self) -> None:
        """Store the unfinished turn and its text every STORED_EVERY seconds, in case the gateway crashes."""
        stored = None
        while self.request.is_stored:
            text = self._answer.text
            if text != stored:
                with suppress(StoreError):  # the final write reports the error
                    await self._services.sessions.begin(self._principal.tenant, *await self._unfinished(text))
                stored = text
            await asyncio.sleep(STORED_EVERY)

    async def _unfinished(self, text: str) -> tuple[Turn, list[int] | None]:
        """Return the turn so far, and the ids from which it can be continued: None while the answer is empty."""
        turn = self.record
        if not text:
            return turn, None
        response = {**turn.response, "usage": self._generation.usage.body()}
        return replace(turn, response=response), await self._ids(text)

    async def _ids(self, text: str) -> list[int] | None:
        """Return the ids of the prompt and of the answer's `text`; None if they cannot be determined now."""
        ids = await self._generation.visible_ids(text)
        return None if ids is None else self._prepared.context.ids + ids

    async def _place(self) -> Placement | None:
        """Wait for a placement, and emit queue positions; return None if the request ends meanwhile."""
        admission, ticket, emitted, at = self._services.admission, self._ticket, 0, 0.0
        while not ticket.placed.done():
            position = admission.position(ticket)
            if emitted != position or time.monotonic() - at >= QUEUED_AGAIN:
                emitted, at = position, time.monotonic()
                self._publish(self._events.queued(position, admission.estimate(ticket)))
            await asyncio.wait({ticket.placed}, timeout=QUEUED_EVERY)
        if ticket.placed.cancelled():
            return None
        placement = ticket.placed.result()
        self._queued = self._seconds
        self._services.metrics.queue.observe(self._queued)
        return placement

    async def _generate(self, placement: Placement) -> None:
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
        if self._first is None:
            self._first = self._seconds
            self._services.metrics.ttft.labels(self._generation.cache).observe(self._first)

    async def _finish(self, placement: Placement | None) -> None:
        """Store the turn, then emit the terminal event: every acknowledged turn is on disk."""
        services, usage = self._services, self._generation.usage
        (closing, last), status = self._last()
        self._emit(closing)
        dropped = await self._save(await self._ids(self._answer.text))
        if dropped:
            services.metrics.dropped_turns.inc(dropped)
            last = replace(last, response={**last.response, "samovar": {"dropped_turns": dropped}})
        if placement is not None:
            services.dispatcher.settle(self.id, placement.engine)
            services.metrics.prompt_tokens.labels("store").inc(self._generation.fetched)
            services.metrics.prompt_tokens.labels("engine").inc(usage.cached - self._generation.fetched)
            services.metrics.prompt_tokens.labels("computed").inc(usage.input - usage.cached)
        self._count(status)
        self._publish(last)

    def _last(self) -> tuple[Ending, str]:
        """Return the last events, and the status for the metrics."""
        generation, events = self._generation, self._events
        prepared = self.request.encodes_only and generation.reason == "length"
        if generation.stopped or prepared or (generation.reason == "stop" and self._ending is None):
            return events.completed(generation.usage), "completed"
        if generation.reason == "length":
            return events.incomplete(generation.usage, "max_output_tokens"), "incomplete"
        reason, explanation = self._ending or ("cancelled", None)
        status = "cancelled" if reason == "cancelled" else "incomplete"
        return events.incomplete(generation.usage, reason, explanation), status

    @property
    def record(self) -> Turn:
        """The turn as it stands, in the form in which it is stored."""
        context, response = self._prepared.context, self._events.response
        return Turn(
            id=self.id,
            previous=self.request.previous_response_id,
            created_at=response["created_at"],
            began=context.began,
            instructions=self.request.instructions,
            items=[*context.items, *response["output"]],
            input=len(context.items),
            ended_by=context.ended_by,
            response=response,
        )

    async def _save(self, ids: list[int] | None) -> int:
        """Save the turn in the store that the request asks for.

        Returns how many of the user's oldest turns were dropped to make room.
        """
        if self.request.is_ephemeral:
            self._unstored.add(self.record, ids)
        elif self.request.is_stored:
            return await self._store(ids)
        elif ids is not None:
            turn = self.record
            self._services.histories.store(self._principal.tenant, self.request, messages(turn.items), ids, self.id)
        return 0

    async def _store(self, ids: list[int] | None) -> int:
        try:
            return await self._services.sessions.add(self._principal.tenant, self.record, ids)
        except StoreError as error:
            raise StoreUnavailableError(f"the conversation cannot be stored: {error}") from error

    async def _fail(self, error: ApiError) -> None:
        self.error = error
        ending = self._events.failed(error)
        with suppress(StoreUnavailableError):  # a failed turn need not be stored
            await self._save(None)
        self._count("failed", error.code)
        self._emit_ending(ending)

    def _emit(self, events: Sequence[Event]) -> None:
        for event in events:
            self._publish(event)

    def _emit_ending(self, ending: Ending) -> None:
        closing, last = ending
        self._emit([*closing, last])

    @property
    def _seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self._arrived

    def _count(self, status: str, code: str = "") -> None:
        """Count the end of the response, and log its ids, times and counts, never its content."""
        self._services.metrics.ended(self.request.route, status, code, seconds=self._seconds)
        usage = self._generation.usage
        log.info(
            "response",
            response_id=self.id,
            tenant=self._principal.shown,
            route=self.request.route,
            status=status,
            code=code or None,
            queue_seconds=_rounded(self._queued),
            first_token_seconds=_rounded(self._first),
            seconds=_rounded(self._seconds),
            prompt_tokens=usage.input,
            cached_tokens=usage.cached,
            generated_tokens=usage.output,
            engines=list(dict.fromkeys(engine.name for engine, _ in self._generation.traces)),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
