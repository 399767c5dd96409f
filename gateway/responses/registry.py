"""The running and recently ended responses. They belong to the gateway, not to a connection."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any, Final

import msgspec

from cache import StoreError
from gateway.auth.principal import Principal
from gateway.conversations.references import referenced_responses
from gateway.conversations.turns import Turn
from gateway.conversations.unstored import Unstored
from gateway.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    ResponseNotFoundError,
    StoreUnavailableError,
)
from gateway.protocol.requests import ResponseCreate
from gateway.responses.conversations import ConversationTurns
from gateway.responses.deletion import delete, delete_here
from gateway.responses.keep_alive import KEEP_ALIVE
from gateway.responses.runner import Running
from gateway.responses.services import Services

KEPT_BYTES: Final = 64 << 20
"""Maximum bytes of ended responses, kept for clients that resume; the oldest are dropped first."""
LAST_SECONDS: Final = 2.0
"""Seconds in which responses must end after they are stopped."""
HURRY_SECONDS: Final = 0.5
"""The same after `end_now`: one step of a working engine."""
STOPPING: Final = "the gateway is stopping; connect again in a moment"


class Responses:
    """The running and recently ended responses of one gateway."""

    def __init__(self, services: Services, *, grace: float, keep_alive: float = KEEP_ALIVE) -> None:
        """Ended responses are kept for `grace` seconds, so that a client that lost its connection can resume.

        A stream without an event for `keep_alive` seconds gets one.
        """
        self.keep_alive = keep_alive
        self.closing = False
        """Whether new requests are rejected."""
        self.on_closing: set[Callable[[], None]] = set()
        """Called once when `close` starts."""
        self.services = services
        self._hurry = asyncio.Event()
        self._grace = grace
        self._running: dict[str, Running] = {}
        self._ended: OrderedDict[str, Running] = OrderedDict()
        self._ended_bytes = 0
        self.turns = ConversationTurns(services.conversations, self._find_running, self.delete_turn)
        """The responses as turns of conversations."""
        services.sessions.on_deletion(self._deleted_elsewhere)
        services.registry.on_check = self._end_invalid

    async def start_response(self, request: ResponseCreate, *, principal: Principal, unstored: Unstored) -> Running:
        """Start a response, which the caller then holds. Raises ApiError."""
        [running] = await self.start_group(request, 1, principal=principal, unstored=unstored)
        return running

    async def start_group(
        self, request: ResponseCreate, count: int, *, principal: Principal, unstored: Unstored
    ) -> list[Running]:
        """Start `count` responses to one prompt, which differ in their seeds. Raises ApiError."""
        self._check_open()
        principal = self.services.registry.current(principal)
        self.services.registry.check_allowance(principal)
        self.services.penalties.check(principal.user)
        self.services.idle_work.interrupt()
        request = await self.turns.resolve(request, principal)
        self.check_ended(request, principal)
        group = await Running.begin(
            self.services,
            request,
            count,
            principal=principal,
            unstored=unstored,
            check_open=self._check_open,
            grace=self._grace,
            keep_alive=self.keep_alive,
        )
        for running in group:
            self._register(running)
        for running in group:
            await self.turns.add(running)
            if request.background:
                await self._store(running)
        return group

    def _check_open(self) -> None:
        """Raise EngineUnavailableError once `close` has started."""
        if self.closing:
            raise EngineUnavailableError(STOPPING)

    @staticmethod
    async def _store(running: Running) -> None:
        """Store a response in the background before its id is returned. Raises StoreUnavailableError."""
        try:
            await running.store()
        except BaseException:
            running.end()
            raise

    def _end_invalid(self, valid: Container[str]) -> None:
        """End the responses in the background of tenants that are not `valid`; others end with their connections."""
        for running in self._running.values():
            if running.request.background and running.principal.tenant not in valid:
                running.end()

    def check_ended(self, request: ResponseCreate, principal: Principal) -> None:
        """Raise InvalidRequestError if a response that the request continues or refers to is still running."""
        needed = dict.fromkeys(referenced_responses(request), request.error_paths.input)
        if request.previous_response_id is not None:
            needed[request.previous_response_id] = "previous_response_id"
        for response, param in needed.items():
            running = self._running.get(response)
            if running is not None and running.principal.tenant == principal.tenant:
                raise InvalidRequestError(
                    f"{response} is still running; continue it on its own lane, or after it has ended", param=param
                )

    def _register(self, running: Running) -> None:
        self._running[running.id] = running
        running.log.watchers.add(lambda: self._on_event(running))

    def find_response(self, principal: Principal, response: str) -> Running | None:
        """Return a running or recently ended response of the principal's tenant."""
        running = self._running.get(response) or self._ended.get(response)
        return running if running is not None and running.principal.tenant == principal.tenant else None

    async def find_undeleted(self, principal: Principal, response: str) -> Running | None:
        """Return the same, unless the response has been deleted at any gateway; required before showing content."""
        running = self.find_response(principal, response)
        if running is None or not running.ended:
            return running
        with suppress(StoreError):  # if the store is unavailable, no deletion is known
            if await self.services.sessions.is_deleted(principal.tenant, response):
                self.drop_ended(running)
                return None
        return running

    async def delete(self, principal: Principal, response: str) -> bool:
        """Delete a response that is not running; return False if there is none. Raises StoreUnavailableError."""
        try:
            return await self.delete_turn(principal.tenant, response)
        except StoreError as error:
            raise StoreUnavailableError(f"the response cannot be deleted: {error}; try again") from error

    async def delete_turn(self, tenant: str, response: str) -> bool:
        """Delete a response that is not running; return False if there is none. Raises StoreError."""
        ended = self._ended.get(response)
        if ended is not None and ended.principal.tenant == tenant:
            self.drop_ended(ended)
        return await delete(self.services, tenant, response)

    async def stop_tenant(self, tenant: str) -> None:
        """End all running responses of a tenant, and forget the ended ones."""
        running = [one for one in self._running.values() if one.principal.tenant == tenant]
        for one in running:
            one.end()
        if running:
            await asyncio.wait([one.task for one in running])
        for ended in [one for one in self._ended.values() if one.principal.tenant == tenant]:
            self.drop_ended(ended)

    def _find_running(self, tenant: str, response: str) -> Running | None:
        running = self._running.get(response)
        return running if running is not None and running.principal.tenant == tenant else None

    async def get_turn(self, principal: Principal, response: str) -> Turn:
        """Return a response of the principal's tenant with its items, as it stands.

        Raises ResponseNotFoundError or StoreUnavailableError.
        """
        running = await self.find_undeleted(principal, response)
        if running is not None:
            if running.is_ending:  # its end is shown once it is stored and the response can be continued
                await asyncio.wait([running.task])
            return running.record
        try:
            found = await self.services.sessions.get(principal.tenant, response)
        except StoreError as error:
            raise StoreUnavailableError(f"the conversation cannot be read: {error}") from error
        if found is None:
            raise ResponseNotFoundError(response)
        return found[0]

    async def _deleted_elsewhere(self, tenant: str, response: str) -> None:
        """Delete from this gateway a response that another gateway has deleted."""
        running = self._ended.get(response)
        if running is not None and running.principal.tenant == tenant:
            self.drop_ended(running)
        await delete_here(self.services, tenant, response)

    def drop_ended(self, running: Running) -> None:
        """Remove an ended response that was deleted or whose grace period is over."""
        if self._ended.pop(running.id, None) is not None:
            self._ended_bytes -= running.retained

    async def close(self, *, within: float) -> None:
        """Reject new requests, wait `within` seconds for running responses, then stop them."""
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
        await self.turns.close()

    def end_now(self) -> None:
        """Stop running responses without waiting any longer in `close`."""
        self._hurry.set()

    async def _wait(self, seconds: float, *, unless: asyncio.Event | None = None) -> None:
        """Wait until all responses have ended, `seconds` have passed, or the event `unless` is set."""
        tasks = [running.task for running in self._running.values()]
        if not tasks:
            return
        waits: set[asyncio.Task[Any]] = {asyncio.create_task(asyncio.wait(tasks))}
        if unless is not None:
            waits.add(asyncio.create_task(unless.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _on_event(self, running: Running) -> None:
        """Move the response to the ended ones after its terminal event."""
        if not running.ended:
            return
        del self._running[running.id]
        self.turns.ended(running)
        if self._grace > 0 and running.request.is_stored:
            # The log counts deltas only: the texts of all other events are those of the record.
            running.retained = running.log.size + len(msgspec.json.encode(running.record))
            self._ended[running.id] = running
            self._ended_bytes += running.retained
            while self._ended_bytes > KEPT_BYTES:
                self.drop_ended(next(iter(self._ended.values())))
            asyncio.get_running_loop().call_later(self._grace, self.drop_ended, running)
