"""Users whose requests crash engines are blocked for a while, and no other users are."""

from __future__ import annotations

import pytest

from gateway.auth.penalties import DEATHS, SECONDS, USERS, Penalties
from gateway.errors import EngineUnavailableError
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def penalties(clock: Clock) -> Penalties:
    return Penalties(clock)


def test_a_user_whose_requests_failed_twice_is_blocked_for_ten_minutes_with_a_retry_time(
    penalties: Penalties, clock: Clock
) -> None:
    penalties.blame("bad", 2.0)
    penalties.check("bad")
    clock.now += 500
    penalties.blame("bad", 2.0)
    clock.now += 90.5
    with pytest.raises(EngineUnavailableError, match="crashed engines") as refused:
        penalties.check("bad")
    assert refused.value.body()["retry_after"] == refused.value.retry_after == 510
    penalties.check("good")
    clock.now += 510
    penalties.check("bad")
    penalties.blame("bad", 2.0)
    penalties.check("bad")


def test_crashes_older_than_ten_minutes_do_not_count(penalties: Penalties, clock: Clock) -> None:
    for _ in range(5):
        penalties.blame("unlucky", 2.0)
        clock.now += SECONDS
        penalties.check("unlucky")


def test_a_death_is_shared_out_between_the_requests_that_the_engine_had(penalties: Penalties) -> None:
    for _ in range(5):
        penalties.blame("one of three", 2 / 3)
    penalties.check("one of three")
    penalties.blame("one of three", 2 / 3)
    with pytest.raises(EngineUnavailableError):
        penalties.check("one of three")


def test_an_engine_that_never_had_the_request_is_no_fault_of_its_user(penalties: Penalties) -> None:
    for _ in range(10):
        penalties.blame("early", 0.0)
    penalties.check("early")
    assert len(penalties) == 0


def test_many_short_lived_users_take_bounded_memory(penalties: Penalties) -> None:
    for number in range(2 * USERS):
        penalties.blame(f"user {number}", 1.0)
    for _ in range(3 * DEATHS):
        penalties.blame("many", 0.001)
    assert len(penalties) == USERS
