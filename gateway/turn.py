"""One turn of a conversation, from a request to its last event."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

from cache import StoreError
from engine import EngineError, EnginePool, EngineProcess, Finished, Generate, Started, Tokens
from gateway.admission import Admission, Ticket
from gateway.caller import Caller
from gateway.conversation import Context, Conversations
from gateway.detokenizer import Detokenizer
from gateway.dispatcher import Demand, Dispatcher, Placement
from gateway.errors import (
    ApiError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelNotFoundError,
    PreviousResponseNotFoundError,
    StoreUnavailableError,
)
from gateway.fairness import Work
from gateway.metrics import Metrics
from gateway.protocol.events import Event, ResponseEvents, Usage
from gateway.protocol.requests import ResponseCreate
from gateway.served import ServedModel
from gateway.sessions import Sessions, Turn
from gateway.settings import Settings

QUEUED_EVERY: Final = 1.0
"""Seconds between two tellings of a queue position."""

Emit = Callable[[Event], Awaitable[None]]
Stored = tuple[Turn, list[int] | None]


@dataclass
class House:
    """All that a turn works with; one for the whole gateway."""

    settings: Settings
    model: ServedModel
    sessions: Sessions
    pool: EnginePool
    dispatcher: Dispatcher
    admission: Admission[Demand, Placement]
    conversations: Conversations
    metrics: Metrics
    clock: Callable[[], float] = time.time
    numbers: int = 0

    def number(self) -> int:
        """A number for a request, as engines know it."""
        self.numbers += 1
        return self.numbers


@dataclass
class Answer:
    """What came out of an engine."""

    detokenizer: Detokenizer
    ids: list[int] = field(default_factory=list)
    cached: int = 0
    reason: str = ""
    first: float | None = None
    """When the first delta was sent, monotonic seconds."""
    latest: float = 0.0
    """When the last tokens came, likewise."""


class TurnRunner:
    """Runs one request. `begin` may refuse it; from then on `run` ends it with exactly one terminal event."""

    def __init__(
        self,
        house: House,
        request: ResponseCreate,
        *,
        caller: Caller,
        unstored: MutableMapping[str, Stored],
        emit: Emit,
    ) -> None:
        """`unstored` holds the connection's own responses that asked for `store: false`."""
        self.id = f"resp_{secrets.token_hex(16)}"
        self._house = house
        self._request = request
        self._caller = caller
        self._unstored = unstored
        self._emit = emit
        self._arrived = time.monotonic()
        self._cancelled = False
        self._ticket: Ticket[Demand, Placement] | None = None
        self._engine_request: tuple[Placement, int] | None = None
        self.left: tuple[EngineProcess, int] | None = None
        """Where its cells lie, and under which number, once it has run."""

    def cancel(self) -> None:
        """End it within one step, wherever it is: it still sends its terminal event."""
        self._cancelled = True
        if self._ticket is not None and self._ticket.place is None:
            self._house.admission.leave(self._ticket)
        self._abort()

    async def run(self) -> None:
        """Answer. Raises ApiError before `response.created`; after it, failures are events."""
        house = self._house
        try:
            context, limit = await self._begin()
            demand = Demand(len(context.ids) + limit, self._request.previous_response_id)
            work = Work(len(context.ids) - context.known, limit)
            ticket = self._ticket = house.admission.enter(demand, self._caller, work)
        except ApiError as error:
            self._count("rejected", error.code)
            raise
        events = self._events(limit)
        answer = Answer(Detokenizer(house.model.vocabulary.piece, self._request.stops))
        placement: Placement | None = None
        try:
            placement = await self._place(ticket, events)
            if placement is not None and not self._cancelled:
                await self._generate(placement, context, limit, answer, events)
            await self._end(context, answer, events, placement)
        except ApiError as error:
            await self._fail(events, error)
        except EngineError as error:
            await self._fail(events, EngineUnavailableError(f"the engine failed: {error}; try again"))
        finally:
            house.admission.leave(ticket, Work(len(context.ids) - answer.cached, len(answer.ids)))

    async def _begin(self) -> tuple[Context, int]:
        """The prompt, and the tokens that the answer may have."""
        house, request = self._house, self._request
        if request.model not in (None, house.model.entry.name):
            raise ModelNotFoundError(
                f"the model {request.model} is not served here; {house.model.entry.name} is", param="model"
            )
        if any(not 0 <= token < house.model.vocabulary.size for token in request.logit_bias or {}):
            raise InvalidRequestError(
                f"logit_bias: tokens are numbered from 0 to {house.model.vocabulary.size - 1}", param="logit_bias"
            )
        context = house.conversations.context(request, await self._previous(), now=int(house.clock()))
        wanted = request.max_output_tokens or house.settings.max_output_tokens
        return context, min(wanted, house.model.context - len(context.ids))

    async def _previous(self) -> Stored | None:
        previous = self._request.previous_response_id
        if previous is None:
            return None
        try:
            found = self._unstored.get(previous) or await self._house.sessions.get(self._caller.tenant, previous)
        except StoreError as error:
            raise StoreUnavailableError(f"the conversation can't be read: {error}") from error
        if found is None:
            raise PreviousResponseNotFoundError(
                f"there is no response {previous}; send the whole conversation instead", param="previous_response_id"
            )
        return found

    def _events(self, limit: int) -> ResponseEvents:
        model, request = self._house.model, self._request
        sampling = model.sampling(request)
        return ResponseEvents(
            request,
            response_id=self.id,
            message_id=f"msg_{secrets.token_hex(16)}",
            model=model.entry.name,
            created_at=int(self._house.clock()),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_output_tokens=limit,
        )

    async def _place(self, ticket: Ticket[Demand, Placement], events: ResponseEvents) -> Placement | None:
        """Wait for a place, telling the position as it changes; None when cancelled there."""
        admission, told = self._house.admission, 0
        await self._emit(events.created())
        while not ticket.placed.done():
            position = admission.position(ticket)
            if told != position:
                told = position
                await self._emit(events.queued(position, admission.estimate(ticket)))
            await asyncio.wait({ticket.placed}, timeout=QUEUED_EVERY)
        if ticket.placed.cancelled():
            return None
        placement = ticket.placed.result()
        self._house.metrics.queue.observe(time.monotonic() - self._arrived)
        return placement

    async def _generate(
        self, placement: Placement, context: Context, limit: int, answer: Answer, events: ResponseEvents
    ) -> None:
        house = self._house
        number = house.number()
        request = Generate(number, context.ids, limit, house.model.sampling(self._request), self._caller.tenant)
        self._engine_request = (placement, number)
        self.left = (placement.engine, number)
        for event in events.in_progress():
            await self._emit(event)
        try:
            async with aclosing(house.pool.generate(placement.engine, request)) as messages:
                async for message in messages:
                    match message:
                        case Started(cached=cached):
                            answer.cached = cached
                            if self._cancelled:  # while the engine was loading
                                self._abort()
                        case Tokens(ids=ids):
                            await self._more(ids, context, answer, events)
                        case Finished():
                            answer.reason = message.reason
                            if message.reason == "failed":
                                raise EngineUnavailableError(f"the engine failed: {message.detail}; try again")
        finally:
            self._engine_request = None
        await self._delta(answer, events, answer.detokenizer.finish(), context)

    async def _more(self, ids: list[int], context: Context, answer: Answer, events: ResponseEvents) -> None:
        now = time.monotonic()
        if answer.ids:
            for _ in ids:
                self._house.metrics.gap.observe((now - answer.latest) / len(ids))
        answer.latest = now
        answer.ids += ids
        await self._delta(answer, events, answer.detokenizer.feed(ids), context)
        if answer.detokenizer.stopped:
            self._abort()

    async def _delta(self, answer: Answer, events: ResponseEvents, text: str, context: Context) -> None:
        if not text:
            return
        await self._emit(events.delta(text))
        if answer.first is None:
            answer.first = time.monotonic()
            if context.known and answer.cached >= context.known - 1:
                cache = "hit"
            else:
                cache = "partial" if answer.cached else "miss"
            self._house.metrics.ttft.labels(cache).observe(answer.first - self._arrived)

    def _abort(self) -> None:
        if self._engine_request is not None:
            placement, number = self._engine_request
            with suppress(EngineError):  # its end is told by the request itself
                placement.engine.abort(number)

    async def _end(self, context: Context, answer: Answer, events: ResponseEvents, placement: Placement | None) -> None:
        """Keep the turn, then say how it ended: what is acknowledged is on disk."""
        house = self._house
        usage = Usage(len(context.ids), answer.cached, len(answer.ids))
        if answer.detokenizer.stopped or (answer.reason == "stop" and not self._cancelled):
            last, status = events.completed(usage), "completed"
        elif self._cancelled or answer.reason in ("", "aborted"):
            last, status = events.incomplete(usage, "cancelled"), "cancelled"
        else:
            last, status = events.incomplete(usage, "max_output_tokens"), "incomplete"
        await self._keep(context, answer, events, last[-1])
        if placement is not None:
            house.dispatcher.settle(self.id, placement.engine)
            house.metrics.prompt_tokens.labels("engine").inc(answer.cached)
            house.metrics.prompt_tokens.labels("computed").inc(len(context.ids) - answer.cached)
        house.metrics.generated.inc(len(answer.ids))
        for event in last:
            await self._emit(event)
        self._count(status)

    async def _keep(self, context: Context, answer: Answer, events: ResponseEvents, last: Event) -> None:
        request = self._request
        turn = Turn(
            id=self.id,
            previous=request.previous_response_id,
            created_at=int(self._house.clock()),
            began=context.began,
            instructions=request.instructions,
            history=[*context.messages, {"role": "assistant", "content": events.text}],
            response=last["response"],
        )
        ids = context.ids + self._said(answer, events.text)
        if request.store is False:
            self._unstored[self.id] = (turn, ids)
            return
        try:
            await self._house.sessions.add(self._caller.tenant, turn, ids)
        except StoreError as error:
            raise StoreUnavailableError(f"the conversation can't be kept: {error}") from error

    def _said(self, answer: Answer, text: str) -> list[int]:
        """The answer's ids; up to a stop string, when one cut it in the middle of what the model emitted."""
        if not answer.detokenizer.stopped:
            return answer.ids
        vocabulary, visible, kept = self._house.model.vocabulary, text.encode(), 0
        for i, token in enumerate(answer.ids):
            size = len(vocabulary.piece(token))
            if kept + size > len(visible):
                rest = visible[kept:].decode(errors="ignore")
                return answer.ids[:i] + vocabulary.tokenize(rest, special=False)
            kept += size
        return answer.ids

    async def _fail(self, events: ResponseEvents, error: ApiError) -> None:
        self._count("failed", error.code)
        for event in events.failed(error):
            await self._emit(event)

    def _count(self, status: str, code: str = "") -> None:
        metrics = self._house.metrics
        metrics.requests.labels("responses", status, code).inc()
        metrics.seconds.observe(time.monotonic() - self._arrived)
