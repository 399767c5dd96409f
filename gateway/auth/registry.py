"""The users of a running gateway, reloaded within a second of a change, and their active connections."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import structlog

from cache import StoreError
from gateway.auth.allowances import DailyTokens
from gateway.auth.principal import ANONYMOUS, Limits, Principal, shown
from gateway.auth.rates import MessageRates
from gateway.auth.usage import Usage
from gateway.auth.user import User, changes, digest, find_user
from gateway.auth.users import Users, UsersLostError
from gateway.errors import InvalidApiKeyError, StoreUnavailableError

EVERY: Final = 1.0
"""Seconds between two checks for changed users, and between two writes of usage counters."""
ELSEWHERE_EVERY: Final = 5.0
"""Seconds between two reads of the usage at other gateways, which counts against daily allowances."""


@dataclass(eq=False)
class ActiveConnection:
    """An authenticated connection or HTTP request."""

    principal: Principal
    address: str
    leave: Callable[[], Awaitable[None]]
    """Closes the connection."""


class UserRegistry:
    """The users of users.db in memory, and all active connections."""

    def __init__(
        self, users: Users, *, concurrency: int, messages: int, clock: Callable[[], float] = time.time
    ) -> None:
        """Read users from `users`, which the registry closes.

        `concurrency` is the number of responses in progress for users without an own limit, `messages` the number of
        messages per user and minute.
        """
        self._file = users
        self._concurrency = concurrency
        self._clock = clock
        self._messages = MessageRates(time.monotonic, limit=messages)
        self._users: list[User] = []
        self._by_tenant: dict[str, User] = {}
        self._has_read = False
        self._read_elsewhere = -math.inf
        self.today = DailyTokens(clock)
        """Today's tokens by tenant."""
        self._unusable = ""
        """Why users.db cannot be used to check keys; empty while it can."""
        self._usage: defaultdict[str, Usage] = defaultdict(Usage)
        self._connections: set[ActiveConnection] = set()
        self._closing: set[asyncio.Future[None]] = set()
        self.by_user: Counter[str] = Counter()
        """Number of active connections by user."""
        self.by_address: Counter[str] = Counter()
        """Number of active connections by client address."""
        self.on_check: Callable[[Container[str]], None] = lambda _: None
        """Called with the valid tenants after each check of the keys."""

    @property
    def users(self) -> Users:
        """The stored users."""
        return self._file

    @property
    def unusable(self) -> str:
        """Why no key can be checked, in words; empty while users.db can be used."""
        return self._unusable

    @property
    def needs_keys(self) -> bool:
        """Whether requests need a key: a key exists or existed."""
        return bool(self._users or self._unusable)

    def identify(self, key: str | None, stranger: str) -> Principal:
        """Return the caller with this `key`. While no keys exist, the user is `stranger`.

        Raises InvalidApiKeyError, or StoreUnavailableError while users.db is lost.
        """
        if self._unusable:
            raise StoreUnavailableError("no key can be checked; the reason is in the gateway's log")
        if not self.needs_keys:
            return Principal(ANONYMOUS, stranger)
        user, credential = find_user(self._users, key) if key else None, digest(key or "")
        if user is None or credential not in user.credentials(self._clock()):
            raise InvalidApiKeyError(_reason(key, user, is_old=user is not None and credential != user.digest))
        self._usage[user.tenant]  # creates an entry, so that the last use is recorded even without a request
        return Principal(user.tenant, user.tenant, self._limits(user), admin=user.admin, credential=credential)

    def current(self, principal: Principal) -> Principal:
        """Return a principal with the present limits: they may have changed since its connection was opened."""
        user = self._by_tenant.get(principal.tenant)
        return principal if user is None else replace(principal, limits=self._limits(user))

    def _limits(self, user: User) -> Limits:
        limits = user.limits
        return limits if limits.concurrency is not None else replace(limits, concurrency=self._concurrency)

    def check_allowance(self, principal: Principal) -> None:
        """Raise RateLimitExceededError if the caller has used up the tokens of today."""
        self.today.check(principal.tenant, principal.limits.tokens_per_day)

    def enter(self, connection: ActiveConnection) -> None:
        """Register an active connection."""
        self._connections.add(connection)
        self.by_user[connection.principal.user] += 1
        self.by_address[connection.address] += 1

    def leave(self, connection: ActiveConnection) -> None:
        """Unregister a connection that has ended."""
        self._connections.remove(connection)
        for counter, name in ((self.by_user, connection.principal.user), (self.by_address, connection.address)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def count_message(self, principal: Principal) -> None:
        """Count a message of the caller. Raises RateLimitExceededError."""
        self._messages.charge(principal)

    def record_usage(self, principal: Principal, tokens: int) -> None:
        """Record an ended request of the caller; `tokens` are those computed for its prompt and generated."""
        if principal.tenant != ANONYMOUS:
            usage = self._usage[principal.tenant]
            usage.requests += 1
            usage.tokens += tokens
            self.today.add(principal.tenant, tokens)

    async def watch(self) -> None:
        """Reload users after each change, until cancelled.

        If the file cannot be read, the error is logged and the known users stay valid. If the file was lost, or
        replaced by a file that is not a database, all keys are rejected.
        """
        logged = ""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.refresh()
                await self.flush()
                await self._count_elsewhere()
                logged = ""
            except StoreError as error:
                if str(error) != logged:
                    logged = str(error)
                    structlog.get_logger().error("users.db can't be used", reason=logged)

    async def refresh(self) -> None:
        """Reload users if they changed, and close connections of users who are no longer valid. Raises StoreError."""
        try:
            changed = await self._file.changed()
            if await self._file.share() or changed or self._unusable:
                self._set_users(await self._file.all())
                await self._file.check()
            self._unusable = ""
        except StoreError as error:
            if isinstance(error, UsersLostError) or not self._file.is_open:
                self._unusable = str(error)
                self._close_invalid()
            raise
        self._close_invalid()

    def _set_users(self, users: list[User]) -> None:
        before, self._users = self._by_tenant, users
        self._by_tenant = {user.tenant: user for user in users}
        self.today.load(users)
        if self._has_read:
            for user, change in changes(before, self._by_tenant):
                structlog.get_logger("gateway").info("user changed", tenant=shown(user.tenant), change=change)
        self._has_read = True

    async def _count_elsewhere(self) -> None:
        """Let the usage at other gateways count against the allowances, if there are any."""
        now = time.monotonic()
        if now - self._read_elsewhere >= ELSEWHERE_EVERY and any(user.tokens_per_day for user in self._users):
            self._read_elsewhere = now
            self.today.set_elsewhere(await self._file.usage.tokens_elsewhere())

    def _close_invalid(self) -> None:
        """Close the connections of users who are no longer valid."""
        if self.needs_keys:
            now = self._clock()
            users = () if self._unusable else self._users
            valid = {user.tenant for user in users if user.is_valid(now)}
            credentials = {credential for user in users for credential in user.credentials(now)}
            for connection in [
                connection for connection in self._connections if connection.principal.credential not in credentials
            ]:
                task = asyncio.ensure_future(connection.leave())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            self.on_check(valid)

    async def pending_erasures(self) -> list[str]:
        """Return the tenants whose data has to be erased here. Raises StoreError."""
        await self._file.erasures.share()
        return await self._file.erasures.pending()

    async def finish_erasure(self, tenant: str) -> None:
        """Record that the data of a tenant is erased here. Raises StoreError."""
        self._usage.pop(tenant, None)
        await self._file.finish_erasure(tenant)

    async def flush(self) -> None:
        """Store the usage counters. Raises StoreError; the counters are then stored by the next call."""
        usage, self._usage = self._usage, defaultdict(Usage)
        try:
            await self._file.usage.add(usage)
        except StoreError:
            for tenant, had in usage.items():
                self._usage[tenant].requests += had.requests
                self._usage[tenant].tokens += had.tokens
            raise

    async def close(self) -> None:
        """Store the usage counters and close the file."""
        with suppress(StoreError):
            await self.flush()
        self._file.close()


def _reason(key: str | None, user: User | None, *, is_old: bool) -> str:
    if not key:
        return "an API key is needed: `Authorization: Bearer KEY`; the operator adds one with `samovar keys add NAME`"
    if user is None:
        return "this API key is unknown"
    if is_old and user.revoked_at is None:
        return "this API key was replaced by a new one; ask the operator for it"
    return "this API key was revoked" if user.revoked_at is not None else "this API key has expired"
