"""Who may come in, as a running gateway knows it: users read again within a second of a change, guests that are in."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import structlog

from cache import StoreError
from gateway.auth.principal import ANONYMOUS, Principal
from gateway.auth.rates import MessageRates
from gateway.auth.user import User
from gateway.auth.users import Usage, Users, UsersLostError, find
from gateway.errors import InvalidApiKeyError, StoreUnavailableError

EVERY: Final = 1.0
"""Seconds between two looks for changes, and between two writings of what was used."""


@dataclass(eq=False)
class ActiveConnection:
    """A connection or request that is in, and how to show it out."""

    principal: Principal
    address: str
    leave: Callable[[], Awaitable[None]]


class UserRegistry:
    """The users' file held in memory, and everybody who is in."""

    def __init__(
        self, users: Users, *, concurrency: int, messages: int, clock: Callable[[], float] = time.time
    ) -> None:
        """`concurrency` is what users may have in flight who have no limit of their own; `messages` are a minute's."""
        self._file = users
        self._concurrency = concurrency
        self._clock = clock
        self._messages = MessageRates(time.monotonic, limit=messages)
        self._users: list[User] = []
        self._unusable = ""
        """Why users.db cannot say whose keys are good, in words; empty while it can."""
        self._usage: defaultdict[str, Usage] = defaultdict(Usage)
        self._guests: set[ActiveConnection] = set()
        self._leaving: set[asyncio.Future[None]] = set()
        self.by_user: Counter[str] = Counter()
        """Guests by user."""
        self.by_address: Counter[str] = Counter()
        """Guests by address."""

    @property
    def unusable(self) -> str:
        """Why no key can be checked, in words; empty while users.db can be used."""
        return self._unusable

    @property
    def needs_keys(self) -> bool:
        """Somebody has, or had, a key, and so everybody needs one."""
        return bool(self._users or self._unusable)

    def identify(self, key: str | None, stranger: str) -> Principal:
        """The caller behind a key; without keys, `stranger` is the user.

        Raises InvalidApiKeyError, or StoreUnavailableError while users.db is lost.
        """
        if self._unusable:
            raise StoreUnavailableError("no key can be checked; the reason is in the gateway's log")
        if not self.needs_keys:
            return Principal(ANONYMOUS, stranger)
        user = find(self._users, key) if key else None
        if user is None or not user.is_valid(self._clock()):
            raise InvalidApiKeyError(_reason(key, user))
        self._usage[user.tenant]  # seen, even if it asks for nothing
        limits = user.limits
        if limits.concurrency is None:
            limits = replace(limits, concurrency=self._concurrency)
        return Principal(user.tenant, user.tenant, limits, admin=user.admin)

    def enter(self, connection: ActiveConnection) -> None:
        """Somebody came in."""
        self._guests.add(connection)
        self.by_user[connection.principal.user] += 1
        self.by_address[connection.address] += 1

    def leave(self, connection: ActiveConnection) -> None:
        """Somebody left."""
        self._guests.remove(connection)
        for counter, name in ((self.by_user, connection.principal.user), (self.by_address, connection.address)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def heard(self, principal: Principal) -> None:
        """A message of the caller's came. Raises RateLimitExceededError."""
        self._messages.take(principal)

    def record(self, principal: Principal, tokens: int) -> None:
        """A request of the caller's ended, for which so many tokens were read or written."""
        if principal.tenant != ANONYMOUS:
            usage = self._usage[principal.tenant]
            usage.requests += 1
            usage.tokens += tokens

    async def watch(self) -> None:
        """Look for changes for ever. A file that can't be read changes nothing: who was in stays in, and is logged.

        A file that was lost, or replaced by one that is no database, lets nobody in.
        """
        logged = ""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.refresh()
                await self.flush()
                logged = ""
            except StoreError as error:
                if str(error) != logged:
                    logged = str(error)
                    structlog.get_logger().error("users.db can't be used", reason=logged)

    async def refresh(self) -> None:
        """Read what changed, and show those out who may be in no longer. Raises StoreError."""
        try:
            changed = await self._file.changed()
            if await self._file.share() or changed or self._unusable:
                self._users = await self._file.all()
                await self._file.check()
            self._unusable = ""
        except StoreError as error:
            if isinstance(error, UsersLostError) or not self._file.is_open:
                self._unusable = str(error)
                self._show_out()
            raise
        self._show_out()

    def _show_out(self) -> None:
        """Close the connections of those who may be in no longer."""
        if self.needs_keys:
            now = self._clock()
            valid = {user.tenant for user in self._users if user.is_valid(now) and not self._unusable}
            for connection in [connection for connection in self._guests if connection.principal.tenant not in valid]:
                task = asyncio.ensure_future(connection.leave())
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)

    async def flush(self) -> None:
        """Write down what was used. Raises StoreError; what was not written is kept."""
        usage, self._usage = self._usage, defaultdict(Usage)
        try:
            await self._file.used(usage)
        except StoreError:
            for tenant, had in usage.items():
                self._usage[tenant].requests += had.requests
                self._usage[tenant].tokens += had.tokens
            raise

    async def close(self) -> None:
        """Write the rest and close the file."""
        with suppress(StoreError):
            await self.flush()
        self._file.close()


def _reason(key: str | None, user: User | None) -> str:
    if not key:
        return "an API key is needed: `Authorization: Bearer KEY`; the operator makes one with `samovar keys add NAME`"
    if user is None:
        return "this API key is not known here"
    return "this API key was revoked" if user.revoked_at is not None else "this API key has expired"
