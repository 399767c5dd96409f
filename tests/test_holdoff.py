"""Who kills engines is refused for a while, and nobody else is."""

from __future__ import annotations

import pytest

from gateway.auth.penalties import DEATHS, SECONDS, USERS, HoldOff
from gateway.errors import EngineUnavailableError
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def holdoff(clock: Clock) -> HoldOff:
    return HoldOff(clock)


def test_a_user_whose_requests_failed_twice_is_refused_for_ten_minutes_and_told_how_long(
    holdoff: HoldOff, clock: Clock
) -> None:
    holdoff.blame("bad", 2.0)
    holdoff.check("bad")
    clock.now += 500
    holdoff.blame("bad", 2.0)
    clock.now += 90.5
    with pytest.raises(EngineUnavailableError, match="killed engines") as refused:
        holdoff.check("bad")
    assert refused.value.body()["retry_after"] == refused.value.retry_after == 510
    holdoff.check("good")
    clock.now += 510
    holdoff.check("bad")
    holdoff.blame("bad", 2.0)
    holdoff.check("bad")


def test_what_is_ten_minutes_old_is_held_against_nobody(holdoff: HoldOff, clock: Clock) -> None:
    for _ in range(5):
        holdoff.blame("unlucky", 2.0)
        clock.now += SECONDS
        holdoff.check("unlucky")


def test_a_death_is_shared_out_between_the_requests_that_the_engine_had(holdoff: HoldOff) -> None:
    for _ in range(5):
        holdoff.blame("beside two others", 2 / 3)
    holdoff.check("beside two others")
    holdoff.blame("beside two others", 2 / 3)
    with pytest.raises(EngineUnavailableError):
        holdoff.check("beside two others")


def test_an_engine_that_never_had_the_request_is_no_fault_of_its_user(holdoff: HoldOff) -> None:
    for _ in range(10):
        holdoff.blame("early", 0.0)
    holdoff.check("early")
    assert len(holdoff) == 0


def test_users_who_come_and_go_for_ever_cost_a_bounded_memory(holdoff: HoldOff) -> None:
    for number in range(2 * USERS):
        holdoff.blame(f"user {number}", 1.0)
    for _ in range(3 * DEATHS):
        holdoff.blame("many", 0.001)
    assert len(holdoff) == USERS
