"""Daily allowances: counted per local day, at this gateway and at others, and refused until the day ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gateway.auth.principal import Limits
from gateway.auth.registry import UserRegistry
from gateway.auth.usage import DAYS, Usage, last_days
from gateway.auth.user import day
from gateway.auth.users import Users
from gateway.errors import RateLimitExceededError

NOON = time.mktime((2026, 11, 30, 12, 0, 0, 0, 0, -1))
HOUR = 3600


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        """Start at noon."""
        self.now = NOON

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def registry_of(folder: Path, clock: Clock) -> UserRegistry:
    registry = UserRegistry(Users(folder, clock=clock), concurrency=2, messages=1200, clock=clock)
    await registry.refresh()
    return registry


async def make_key(folder: Path, clock: Clock, allowance: int | None) -> str:
    users = Users(folder, clock=clock)
    key = await users.add("anna", limits=Limits(tokens_per_day=allowance))
    users.close()
    return key


async def limit(folder: Path, clock: Clock, **limits: float | None) -> None:
    """Change limits as `samovar keys limit` does, in another process."""
    users = Users(folder, clock=clock)
    await users.limit("anna", limits)
    users.close()


async def test_a_used_up_allowance_is_refused_until_midnight_also_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    key = await make_key(tmp_path, clock, 100)
    registry = await registry_of(tmp_path, clock)
    registry.check_allowance(registry.identify(key, ""))
    registry.record_usage(registry.identify(key, ""), 100)
    for _ in range(2):
        with pytest.raises(RateLimitExceededError, match="100 tokens of today") as refused:
            registry.check_allowance(registry.identify(key, ""))
        assert refused.value.body()["retry_after"] == 12 * HOUR
        assert refused.value.body()["limit"] == "tokens_per_day"
        await registry.close()
        registry = await registry_of(tmp_path, clock)
    clock.now += 12 * HOUR
    registry.check_allowance(registry.identify(key, ""))
    assert registry.today.used(registry.identify(key, "").tenant) == 0
    await registry.close()


async def test_a_changed_allowance_applies_to_connections_that_are_open(tmp_path: Path, clock: Clock) -> None:
    key = await make_key(tmp_path, clock, None)
    registry = await registry_of(tmp_path, clock)
    principal = registry.identify(key, "")
    registry.record_usage(principal, 10)
    registry.check_allowance(registry.current(principal))
    await limit(tmp_path, clock, tokens_per_day=10, concurrency=7)
    await registry.refresh()
    assert registry.current(principal).limits == Limits(7, None, 1.0, 10)
    with pytest.raises(RateLimitExceededError):
        registry.check_allowance(registry.current(principal))
    await limit(tmp_path, clock, tokens_per_day=None, concurrency=None)
    await registry.refresh()
    assert registry.current(principal).limits == Limits(2)
    registry.check_allowance(registry.current(principal))
    await registry.close()


async def test_usage_is_stored_by_day_for_a_month_only(tmp_path: Path, clock: Clock) -> None:
    users = Users(tmp_path, clock=clock)
    await users.add("anna")
    [user] = await users.all()
    for _ in range(40):
        await users.usage.add({user.tenant: Usage(1, 10)})
        await users.usage.add({user.tenant: Usage(0, 1)})
        clock.now += 24 * HOUR
    clock.now -= 24 * HOUR
    days = (await users.usage.days(user.tenant))[user.tenant]
    assert sorted(days) == last_days(day(clock.now), DAYS)
    assert {(used.requests, used.tokens) for used in days.values()} == {(1, 11)}
    await users.erase("anna")
    assert await users.usage.days() == {}
    users.close()


async def test_an_allowance_counts_what_other_gateways_have_published(tmp_path: Path, clock: Clock) -> None:
    key = await make_key(tmp_path, clock, 100)
    registry = await registry_of(tmp_path, clock)
    principal = registry.identify(key, "")
    registry.today.set_elsewhere({principal.tenant: 60})
    registry.record_usage(principal, 39)
    registry.check_allowance(principal)
    registry.record_usage(principal, 1)
    with pytest.raises(RateLimitExceededError):
        registry.check_allowance(principal)
    await registry.close()


def test_the_limits_set_last_win_in_any_order(tmp_path: Path, clock: Clock) -> None:
    async def versions() -> list[tuple[int | None, int]]:
        users = Users(tmp_path, clock=clock)
        await users.add("anna", limits=Limits(tokens_per_day=5))
        [first] = await users.all()
        await users.limit("anna", {"tokens_per_day": 6})
        [second] = await users.all()
        await users.rotate("anna")
        [third] = await users.all()
        await users.limit("anna", {"tokens_per_day": None})  # in the same second
        [fourth] = await users.all()
        users.close()
        merged = [one.key.merged(other.key) for one, other in ((first, second), (second, first), (fourth, third))]
        assert merged[2].digest == third.digest
        return [(key.tokens_per_day, key.limits_at - first.limits_at) for key in merged]

    assert asyncio.run(versions()) == [(6, 1), (6, 1), (None, 2)]
