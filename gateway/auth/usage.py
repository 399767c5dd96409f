"""Usage counters of users: in all, today, and by day; at this gateway, and at others that share a Redis."""

from __future__ import annotations

import datetime
import secrets
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from cache import Database, Ledger, StoreError
from gateway.auth.erasures import USE, USE_DAYS, Erasures
from gateway.auth.user import DailyUse, Use, User, day

DAYS: Final = 31
"""Days for which daily usage is stored, today included. Older rows are deleted."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS usage_days (
    tenant TEXT NOT NULL, day TEXT NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (tenant, day)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS here (only INTEGER PRIMARY KEY CHECK (only = 1), id TEXT NOT NULL) STRICT;
"""
_USED: Final = """
UPDATE users SET last_used = ?2, requests = requests + ?4, tokens = tokens + ?5, day = ?3,
    requests_today = CASE day WHEN ?3 THEN requests_today ELSE 0 END + ?4,
    tokens_today = CASE day WHEN ?3 THEN tokens_today ELSE 0 END + ?5
WHERE tenant = ?1 AND NOT EXISTS (SELECT 1 FROM erasures WHERE erasures.tenant = ?1)
"""
_USED_ON_DAY: Final = """
INSERT INTO usage_days SELECT ?1, ?2, ?3, ?4
WHERE ?3 + ?4 > 0 AND NOT EXISTS (SELECT 1 FROM erasures WHERE erasures.tenant = ?1)
ON CONFLICT DO UPDATE SET requests = requests + ?3, tokens = tokens + ?4
"""
_FORGET_DAYS: Final = "DELETE FROM usage_days WHERE day NOT BETWEEN ? AND ?"
_READ_USE: Final = "SELECT last_used, requests, tokens, day, requests_today, tokens_today FROM users WHERE tenant = ?"


@dataclass
class Usage:
    """One user's usage since the counters were last stored, or on one day."""

    requests: int = 0
    tokens: int = 0
    """Prompt tokens computed plus tokens generated; tokens from a cache do not count."""


class UsageCounters:
    """The usage counters in users.db. All methods raise StoreError if the disk fails."""

    def __init__(
        self, database: Database, ledger: Ledger | None, erasures: Erasures, clock: Callable[[], float]
    ) -> None:
        """Store counters in `database`, and share them with other gateways through `ledger`."""
        self._database = database
        self._ledger = ledger
        self._erasures = erasures
        self._clock = clock
        self._unshared: set[str] = set()
        """Tenants whose usage here is not published yet."""
        self._forgotten = ""
        """Date on which days that are over were last deleted."""
        self._revision: int | None = None
        self._elsewhere: dict[str, int] = {}

    async def add(self, usage: Mapping[str, Usage]) -> None:
        """Add to the stored counters, by tenant."""
        if usage:
            now = self._clock()
            await self._database.transact(lambda connection: self._add(connection, usage, now))
        if self._ledger is not None:
            self._unshared |= set(usage)
            await self._publish()

    def _add(self, connection: sqlite3.Connection, usage: Mapping[str, Usage], now: float) -> None:
        today = day(now)
        for tenant, used in usage.items():
            connection.execute(_USED, (tenant, int(now), today, used.requests, used.tokens))
            connection.execute(_USED_ON_DAY, (tenant, today, used.requests, used.tokens))
        if self._forgotten != today:
            connection.execute(_FORGET_DAYS, (last_days(today, DAYS)[0], today))
            self._forgotten = today

    def republish(self, tenants: Iterable[str]) -> None:
        """Publish the usage of these tenants again: the ledger has lost its data."""
        self._unshared |= set(tenants)

    async def totals(self, users: Sequence[User]) -> list[User]:
        """Return users with their usage at all gateways; without the ledger, at this one."""
        found, here, today = list(users), await self._gateway_id(), day(self._clock())
        with suppress(StoreError):
            for use in await self._published():
                if use.gateway != here:
                    found = [user.with_use(use, today) if user.tenant == use.tenant else user for user in found]
        return found

    async def tokens_elsewhere(self) -> Mapping[str, int]:
        """Return today's tokens at other gateways by tenant, as last published; without the ledger, as last known."""
        if self._ledger is not None:
            with suppress(StoreError):
                revision = await self._ledger.revision(USE)
                if revision != self._revision:
                    here, today, tokens = await self._gateway_id(), day(self._clock()), defaultdict[str, int](int)
                    for use in await self._published():
                        if use.gateway != here and use.day == today:
                            tokens[use.tenant] += use.tokens_today
                    self._revision, self._elsewhere = revision, tokens
        return self._elsewhere

    async def days(self, tenant: str | None = None) -> dict[str, dict[str, Usage]]:
        """Return the usage by tenant and day of the last DAYS days at all gateways, of one tenant or of all."""
        found: defaultdict[str, defaultdict[str, Usage]] = defaultdict(lambda: defaultdict(Usage))
        known = set(last_days(day(self._clock()), DAYS))
        own = [DailyUse("", one, days) for one, days in (await self._own_days(tenant)).items()]
        for use in (*own, *await self._days_elsewhere()):
            if tenant in (None, use.tenant):
                for date, (requests, tokens) in use.days.items():
                    if date in known:
                        found[use.tenant][date].requests += requests
                        found[use.tenant][date].tokens += tokens
        return {one: dict(days) for one, days in found.items()}

    async def _own_days(self, tenant: str | None) -> dict[str, dict[str, tuple[int, int]]]:
        rows = await self._database.run(
            "SELECT tenant, day, requests, tokens FROM usage_days WHERE tenant = coalesce(?, tenant)", (tenant,)
        )
        found: defaultdict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        for one, date, requests, tokens in rows:
            found[one][date] = (requests, tokens)
        return found

    async def _days_elsewhere(self) -> list[DailyUse]:
        if self._ledger is None:
            return []
        try:
            records = await self._ledger.read(USE_DAYS)
        except StoreError:
            return []
        here = await self._gateway_id()
        uses = (msgspec.msgpack.decode(record, type=DailyUse) for record in records)
        return [use for use in uses if use.gateway != here]

    async def _published(self) -> list[Use]:
        """Return the usage of all users at all gateways. Raises StoreError if the ledger is unavailable."""
        records = [] if self._ledger is None else await self._ledger.read(USE)
        return [msgspec.msgpack.decode(record, type=Use) for record in records]

    async def _publish(self) -> None:
        """Publish usage at this gateway. If the ledger is unavailable, the next call retries."""
        if not self._unshared or self._ledger is None:
            return
        here, uses, days = await self._gateway_id(), dict[str, bytes](), dict[str, bytes]()
        for tenant in self._unshared - await self._erasures.tenants():
            for row in await self._database.run(_READ_USE, (tenant,)):
                own = (await self._own_days(tenant)).get(tenant, {})
                uses[f"{here} {tenant}"] = msgspec.msgpack.encode(Use(here, tenant, *row))
                days[f"{here} {tenant}"] = msgspec.msgpack.encode(DailyUse(here, tenant, own))
        with suppress(StoreError):
            if uses:
                await self._ledger.write(USE, uses)
                await self._ledger.write(USE_DAYS, days)
            self._unshared.clear()

    async def record_name(self, tenant: str) -> str:
        """Return the name of a tenant's records of usage at this gateway."""
        return f"{await self._gateway_id()} {tenant}"

    async def _gateway_id(self) -> str:
        """Return this gateway's id, created on first use."""
        await self._database.run("INSERT OR IGNORE INTO here VALUES (1, ?)", (secrets.token_hex(8),))
        [[id_]] = await self._database.run("SELECT id FROM here")
        return str(id_)


def last_days(today: str, count: int) -> list[str]:
    """Return the last `count` dates, the oldest first, up to `today`."""
    last = datetime.date.fromisoformat(today)
    return [(last - datetime.timedelta(days=ago)).isoformat() for ago in reversed(range(count))]
