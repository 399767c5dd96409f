"""The responses that run, and those that ended a moment ago: they belong to the gateway, not to a connection."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from cache import StoreError
from gateway.auth.principal import Principal
from gateway.conversations.turns import Turn
from gateway.conversations.unstored import Unstored
from gateway.errors import (
    ApiError,
    EngineUnavailableError,
    InvalidRequestError,
    ResponseNotFoundError,
    StoreUnavailableError,
)
from gateway.observability.faults import report
from gateway.protocol.log import EventLog, Reader
from gateway.protocol.requests import ResponseCreate
from gateway.responses.deletion import delete, delete_here
from gateway.responses.runner import TurnRunner
from gateway.responses.services import Services, new_id

KEPT_BYTES: Final = 64 << 20
"""Bytes of ended responses' events that are kept for those who come back; the oldest go."""
LAST_SECONDS: Final = 2.0
"""How long responses may take to end once they are told to."""
HURRY_SECONDS: Final = 0.5
"""Longest wait for them after `end_now`: a step of an engine that works."""
STOPPED: Final = "the gateway stopped before the answer was complete; try again in a moment"
STOPPING: Final = "the gateway is about to stop; connect again in a moment"
TOO_SLOW: Final = "the client read too slowly: more than 1 MiB of events waited for it"


class Running:
    """One response and its events. It runs on as long as somebody holds it, and a grace time longer."""

    def __init__(self, turn: TurnRunner, log: EventLog, principal: Principal, *, grace: float) -> None:
        """`grace` is in seconds, counted from the loss of its last holder."""
        self.turn = turn
        self.log = log
        self.principal = principal
        self._grace = grace
        self._holders = 0
        self._stopped = False
        """Whether the gateway ended the response because it stops."""
        self._timer: asyncio.TimerHandle | None = None
        self.task = asyncio.create_task(self._run())
        """Is done when it has ended."""

    @property
    def failure(self) -> ApiError | None:
        """The error for a client that gets only the whole response; half an answer would pass for all of it."""
        cut = self._stopped and self.turn.response["status"] == "cancelled"
        return EngineUnavailableError(STOPPED) if cut else self.turn.error

    @property
    def ended(self) -> bool:
        """Whether its terminal event was told."""
        return self.log.terminal is not None

    def resume(self, after: int, *, stream_id: str | None = None) -> Reader:
        """Hold it, and read on behind event `after`. Raises InvalidRequestError."""
        if after + 1 < self.log.first:
            raise InvalidRequestError(
                f"starting_after: the events before {self.log.first} are gone; retrieve the response instead",
                param="starting_after",
            )
        if after >= self.log.end or (self.ended and after == self.log.end - 1):
            raise InvalidRequestError(
                f"starting_after: the last event so far is {self.log.end - 1}", param="starting_after"
            )
        self.hold()
        return Reader(self.log, after=after, stream_id=stream_id)

    def hold(self) -> None:
        """Somebody wants its events."""
        self._holders += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def let_go(self, *, lost: bool) -> None:
        """Somebody left: on purpose, or `lost`, and then may come back. When it was the last one, it ends."""
        self._holders -= 1
        if self._holders > 0 or self.ended:
            return
        if lost and self._grace > 0 and self.turn.request.remembered:
            reason = f"its connection was lost, and nobody came back within {self._grace:g} s"
            self._timer = asyncio.get_running_loop().call_later(self._grace, self.turn.end, "cancelled", reason)
        else:
            self.turn.end()

    def stop(self) -> None:
        """End the response because the gateway stops."""
        self._stopped = True
        self.turn.end("cancelled", "the gateway stops")

    def fell_behind(self) -> None:
        """A holder did not read for so long that events were dropped: when it is the only one, why go on?"""
        if self._holders == 1:
            self.turn.end("cancelled", TOO_SLOW)

    async def _run(self) -> None:
        try:
            await self.turn.run()
        except Exception as error:  # noqa: BLE001 - `run` could not even tell that it failed
            self._break_off(report(error, self.turn.id))
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._break_off(EngineUnavailableError("the gateway could not finish this answer; try again"))

    def _break_off(self, error: ApiError) -> None:
        if not self.ended:
            self.turn.break_off(error)


class Responses:
    """All of one gateway's."""

    def __init__(self, services: Services, *, grace: float) -> None:
        """Ended responses are kept for `grace` seconds, as long as a lost client may take to come back."""
        self.closing = False
        """Whether no new request is taken."""
        self.on_closing: set[Callable[[], None]] = set()
        """Called once when it begins to close."""
        self.services = services
        self._hurry = asyncio.Event()
        self._grace = grace
        self._running: dict[str, Running] = {}
        self._ended: OrderedDict[str, Running] = OrderedDict()
        self._ended_bytes = 0
        services.sessions.on_deletion(self._deleted_elsewhere)

    async def start(self, request: ResponseCreate, *, principal: Principal, unstored: Unstored) -> Running:
        """Take a request; who gets the response holds it. Raises ApiError."""
        if self.closing:
            raise EngineUnavailableError(STOPPING)
        previous = self._running.get(request.previous_response_id or "")
        if previous is not None and previous.principal.tenant == principal.tenant:
            raise InvalidRequestError(
                f"{previous.turn.id} is still being answered; continue it on its own lane, or when it has ended",
                param="previous_response_id",
            )
        log = EventLog(on_fault=lambda error: report(error, new_id("req")))
        turn = await TurnRunner.begin(
            self.services, request, principal=principal, unstored=unstored, publish=log.append
        )
        running = Running(turn, log, principal, grace=self._grace)
        running.hold()
        self._register(running)
        return running

    def _register(self, running: Running) -> None:
        self._running[running.turn.id] = running
        running.log.watchers.add(lambda: self._watch(running))
        if self.closing:  # the gateway began to close while the prompt was being encoded
            running.stop()

    def find(self, principal: Principal, response: str) -> Running | None:
        """A response of the caller's that runs or ended lately."""
        running = self._running.get(response) or self._ended.get(response)
        return running if running is not None and running.principal.tenant == principal.tenant else None

    async def find_kept(self, principal: Principal, response: str) -> Running | None:
        """Likewise, for whoever wants its contents: one that was deleted meanwhile, at any gateway, is none."""
        running = self.find(principal, response)
        if running is None or not running.ended:
            return running
        with suppress(StoreError):  # what can't be asked has deleted nothing that is known of
            if await self.services.sessions.is_deleted(principal.tenant, response):
                self.drop(running)
                return None
        return running

    async def delete(self, principal: Principal, response: str) -> bool:
        """Delete a response that does not run; False when there is none. Raises StoreUnavailableError."""
        running = self.find(principal, response)
        if running is not None:
            self.drop(running)
        try:
            return await delete(self.services, principal.tenant, response)
        except StoreError as error:
            raise StoreUnavailableError(f"the response can't be deleted: {error}; try again") from error

    async def record(self, principal: Principal, response: str) -> Turn:
        """A response of the caller's with its items, as it stands.

        Raises ResponseNotFoundError or StoreUnavailableError.
        """
        running = await self.find_kept(principal, response)
        if running is not None:
            return running.turn.record
        try:
            found = await self.services.sessions.get(principal.tenant, response)
        except StoreError as error:
            raise StoreUnavailableError(f"the conversation can't be read: {error}") from error
        if found is None:
            raise ResponseNotFoundError(response)
        return found[0]

    async def _deleted_elsewhere(self, tenant: str, response: str) -> None:
        """Drop all that this gateway holds of a response that another one has deleted."""
        running = self._ended.get(response)
        if running is not None and running.principal.tenant == tenant:
            self.drop(running)
        await delete_here(self.services, tenant, response)

    def drop(self, running: Running) -> None:
        """Forget an ended response: it was deleted, or its time is over."""
        if self._ended.pop(running.turn.id, None) is not None:
            self._ended_bytes -= running.log.size

    async def close(self, *, within: float) -> None:
        """Take nothing new, let what runs end `within` seconds, then end it."""
        self.closing = True
        watchers, self.on_closing = self.on_closing, set()
        for watcher in watchers:
            watcher()
        await self._wait(within, unless=self._hurry)
        for running in self._running.values():
            running.stop()
        await self._wait(HURRY_SECONDS if self._hurry.is_set() else LAST_SECONDS)
        for running in self._running.values():
            running.task.cancel()
        await self._wait(LAST_SECONDS)

    def end_now(self) -> None:
        """End the time that `close` grants to running responses."""
        self._hurry.set()

    async def _wait(self, seconds: float, *, unless: asyncio.Event | None = None) -> None:
        """Wait until all responses have ended, for at most `seconds`, or `unless` the event is set."""
        tasks = [running.task for running in self._running.values()]
        if not tasks:
            return
        waits: set[asyncio.Task[Any]] = {asyncio.create_task(asyncio.wait(tasks))}
        if unless is not None:
            waits.add(asyncio.create_task(unless.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _watch(self, running: Running) -> None:
        """See it end."""
        if not running.ended:
            return
        del self._running[running.turn.id]
        if self._grace > 0 and running.turn.request.remembered:
            self._ended[running.turn.id] = running
            self._ended_bytes += running.log.size
            while self._ended_bytes > KEPT_BYTES:
                self.drop(next(iter(self._ended.values())))
            asyncio.get_running_loop().call_later(self._grace, self.drop, running)
