"""The queue: fair between users, bounded, never losing a place."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.auth.principal import Limits, Principal
from gateway.errors import QueueFullError, QueueTimeoutError, RateLimitExceededError
from gateway.scheduling.admission import OVERTAKEN, Admission
from gateway.scheduling.fair_queue import Ticket
from gateway.scheduling.placement import Demand, Placement

TURN = Demand(20, 50)
BATCH = Demand(2000, 800)
ENGINE: Any = None
"""The queue does not look at engines."""


@dataclass(frozen=True)
class Sized(Demand):
    """A demand that takes up `size` places."""

    size: int = 1


def size(demand: Demand) -> int:
    """The number of places that a demand takes up."""
    assert isinstance(demand, Sized)
    return demand.size


@dataclass
class Rooms:
    """A dispatcher with a capacity of which each request takes its own number, and a clock that the test sets."""

    free: int
    now: float = 0.0
    limit: int = 64
    timeout: float = 60
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(
            self.place, self.give_back, limit=self.limit, timeout=self.timeout, clock=lambda: self.now
        )

    def place(self, demand: Demand) -> Placement | None:
        if size(demand) > self.free:
            return None
        self.free -= size(demand)
        return Placement(0, ENGINE, demand)

    def give_back(self, placement: Placement) -> None:
        self.free += size(placement.demand)

    def enter(
        self, user: str, demand: Demand = TURN, *, size: int = 1, ahead: bool = False, group: str | None = None,
        **limits: float,
    ) -> Ticket:  # fmt: skip
        principal = Principal("tenant", user, Limits(**limits))  # type: ignore[arg-type]  # floats and ints by name
        sized = Sized(demand.prompt, demand.answer, group=group, size=size)
        return self.admission.enter(sized, principal, ahead=ahead)

    def finish(self, ticket: Ticket, done: Demand = TURN) -> None:
        assert ticket.place is not None
        self.admission.leave(ticket, done)

    def positions(self, *tickets: Ticket) -> list[int]:
        return [self.admission.position(ticket) for ticket in tickets]


async def test_a_free_place_is_given_at_once_without_a_position() -> None:
    rooms = Rooms(1)
    ticket = rooms.enter("anna")
    assert ticket.place
    assert rooms.positions(ticket) == [0]


async def test_a_users_requests_are_served_in_order_and_positions_move() -> None:
    rooms = Rooms(1)
    first, second, third = (rooms.enter("anna") for _ in range(3))
    assert rooms.positions(second, third) == [1, 2]
    rooms.finish(first)
    assert second.place
    assert rooms.positions(second, third) == [0, 1]


async def test_a_user_with_forty_requests_delays_another_by_one_turn_only() -> None:
    rooms = Rooms(1, limit=100)
    flood = [rooms.enter("flood") for _ in range(41)]
    first, second = rooms.enter("anna"), rooms.enter("bert")
    assert sorted(rooms.positions(first, second)) == [1, 2]
    rooms.finish(flood[0])
    assert first.place
    rooms.finish(first)
    assert second.place


async def test_answers_that_end_early_give_no_credit_over_a_new_user() -> None:
    rooms = Rooms(4, limit=100)
    flood = [rooms.enter("flood", Demand(20, 1000)) for _ in range(40)]
    for ticket in flood[:10]:
        rooms.finish(ticket, Demand(0, 1))
    late = rooms.enter("anna", Demand(20, 1000))
    assert rooms.positions(late) == [1]


async def test_users_share_by_tokens_and_not_by_requests() -> None:
    rooms, served = Rooms(1), Counter[str]()
    sizes = {"long": Demand(0, 300), "short": Demand(0, 100)}
    running = {rooms.enter(user, work): user for user, work in sizes.items() for _ in range(2)}
    for _ in range(400):
        ticket, user = next((ticket, user) for ticket, user in running.items() if ticket.place)
        rooms.finish(ticket, sizes[user])
        served[user] += sizes[user].answer
        del running[ticket]
        running[rooms.enter(user, sizes[user])] = user
    assert served["long"] / served["short"] == pytest.approx(1, rel=0.05)


async def test_a_user_of_twice_the_weight_gets_twice_the_tokens() -> None:
    rooms, served = Rooms(1), Counter[float]()
    running = {rooms.enter(f"{weight}", weight=weight): weight for weight in (1, 2) for _ in range(2)}
    for _ in range(300):
        ticket, weight = next((ticket, weight) for ticket, weight in running.items() if ticket.place)
        rooms.finish(ticket)
        served[weight] += 1
        del running[ticket]
        running[rooms.enter(f"{weight}", weight=weight)] = weight
    assert served[2] / served[1] == pytest.approx(2, rel=0.1)


async def test_ten_equal_users_get_equal_shares_whatever_the_lengths_of_their_answers() -> None:
    """Jain's index of tokens is at least 0.98."""
    rooms, draw, served = Rooms(4), random.Random(7), Counter[int]()
    running = {rooms.enter(f"{user}"): user for user in range(10) for _ in range(3)}
    for _ in range(2000):
        ticket, user = draw.choice([(ticket, user) for ticket, user in running.items() if ticket.place])
        answer = round(draw.lognormvariate(4, 1))
        rooms.finish(ticket, Demand(20, answer))
        served[user] += 20 + answer
        del running[ticket]
        running[rooms.enter(f"{user}", Demand(20, 1000))] = user
    assert sum(served.values()) ** 2 / (10 * sum(value**2 for value in served.values())) >= 0.98


async def test_a_short_turn_goes_before_a_long_one_that_came_earlier() -> None:
    rooms = Rooms(1)
    rooms.enter("flood")
    batch, turn = rooms.enter("bert", BATCH), rooms.enter("anna")
    assert rooms.positions(batch, turn) == [2, 1]


async def test_an_endless_row_of_newcomers_does_not_starve_a_long_request() -> None:
    rooms = Rooms(1)
    running, batch = rooms.enter("0"), rooms.enter("bert", BATCH)
    for number in range(1, 100):
        late = rooms.enter(f"{number}")
        rooms.finish(running)
        if batch.place:
            break
        running = late
    assert number < 40


async def test_encoding_ahead_waits_for_all_requests_with_an_answer() -> None:
    rooms = Rooms(1)
    running = rooms.enter("flood")
    ahead, turn, batch = rooms.enter("anna", ahead=True), rooms.enter("anna"), rooms.enter("bert", BATCH)
    assert rooms.positions(ahead, turn, batch) == [3, 1, 2]
    for ticket in (running, turn, batch, ahead):
        rooms.finish(ticket)


async def test_small_requests_pass_a_big_one_that_finds_no_room_but_not_for_ever() -> None:
    rooms = Rooms(4, limit=100)
    small = [rooms.enter("flood") for _ in range(50)]
    big = rooms.enter("anna", size=4)
    passed = 0
    for ticket in small:
        if big.place:
            break
        if ticket.place:
            rooms.finish(ticket)
            passed += 1
    assert big.place
    assert passed == OVERTAKEN + 4  # four ran already


async def test_a_users_requests_beyond_its_concurrency_wait_and_are_passed() -> None:
    rooms = Rooms(3)
    anna = [rooms.enter("anna", concurrency=2) for _ in range(3)]
    bert = rooms.enter("bert", concurrency=2)
    assert [bool(ticket.place) for ticket in [*anna, bert]] == [True, True, False, True]
    rooms.finish(anna[0])
    assert anna[2].place


async def test_a_group_is_one_request_to_the_concurrency_of_its_user() -> None:
    rooms = Rooms(12)
    group = [rooms.enter("anna", group="g", concurrency=2) for _ in range(8)]
    others = [rooms.enter("anna", concurrency=2) for _ in range(2)]
    second = [rooms.enter("anna", group="h", concurrency=2) for _ in range(2)]
    assert all(ticket.place for ticket in group)
    assert [bool(ticket.place) for ticket in [*others, *second]] == [True, False, False, False]
    for ticket in group[:-1]:
        rooms.finish(ticket)
    assert not others[1].place
    rooms.finish(group[-1])
    assert others[1].place
    assert not any(ticket.place for ticket in second)
    rooms.finish(others[0])
    assert all(ticket.place for ticket in second)


async def test_requests_of_a_group_do_not_fail_for_waiting_on_each_other() -> None:
    rooms = Rooms(1, limit=0, timeout=0.01)
    group = [rooms.enter("anna", group="g") for _ in range(3)]
    await asyncio.sleep(0.05)
    for ticket in group:
        assert ticket.place
        rooms.finish(ticket)
    assert len(rooms.admission) == 0


async def test_a_group_that_does_not_start_is_refused_by_its_first_request() -> None:
    rooms = Rooms(0, limit=2, timeout=0.01)
    first, *others = [rooms.enter("anna", group="g") for _ in range(3)]
    with pytest.raises(QueueFullError):
        rooms.enter("anna", group="h")
    with pytest.raises(QueueTimeoutError):
        await first.placed
    assert not any(ticket.placed.done() for ticket in others)
    for ticket in others:
        rooms.admission.leave(ticket)
    assert len(rooms.admission) == 0


async def test_one_user_holds_at_most_half_of_the_queue() -> None:
    rooms = Rooms(0, limit=4)
    waiting = [rooms.enter("anna") for _ in range(2)]
    with pytest.raises(QueueFullError):
        rooms.enter("anna")
    bert = rooms.enter("bert")
    assert sorted(rooms.positions(*waiting, bert)) == [1, 2, 3]


async def test_a_full_queue_rejects_the_newest_request_of_the_user_with_the_most() -> None:
    rooms = Rooms(0, limit=4)
    anna, bert = [rooms.enter("anna") for _ in range(2)], [rooms.enter("bert") for _ in range(2)]
    rooms.enter("carl")
    with pytest.raises(QueueFullError):
        await bert[1].placed
    assert [ticket.placed.done() for ticket in [*anna, bert[0]]] == [False] * 3
    rooms.enter("dora")
    with pytest.raises(QueueFullError):
        await anna[1].placed
    with pytest.raises(QueueFullError):
        rooms.enter("anna")
    assert len(rooms.admission) == 4


async def test_a_full_queue_refuses_what_is_encoded_ahead_first() -> None:
    rooms = Rooms(0, limit=2)
    ahead = rooms.enter("anna", ahead=True)
    rooms.enter("bert")
    rooms.enter("carl")
    with pytest.raises(QueueFullError):
        await ahead.placed
    with pytest.raises(QueueFullError):
        rooms.enter("dora", ahead=True)


async def test_with_a_queue_limit_of_0_a_request_is_placed_or_rejected() -> None:
    rooms = Rooms(1, limit=0)
    assert rooms.enter("anna").place
    with pytest.raises(QueueFullError):
        rooms.enter("bert")


async def test_waiting_ends_after_the_time_out_and_frees_the_queue() -> None:
    rooms = Rooms(0, timeout=0.01)
    ticket = rooms.enter("anna")
    with pytest.raises(QueueTimeoutError):
        await ticket.placed
    assert len(rooms.admission) == 0


async def test_a_leaving_request_moves_the_others_up_immediately() -> None:
    rooms = Rooms(0)
    first, second = rooms.enter("anna"), rooms.enter("bert")
    rooms.admission.leave(first)
    assert rooms.positions(first, second) == [0, 1]
    assert first.placed.cancelled()


async def test_leaving_twice_releases_a_placement_once() -> None:
    rooms = Rooms(1)
    ticket = rooms.enter("anna")
    rooms.admission.leave(ticket)
    rooms.admission.leave(ticket)
    assert rooms.free == 1


async def test_the_estimate_follows_the_interval_between_placements() -> None:
    rooms = Rooms(1)
    running, *waiting = (rooms.enter(f"{user}") for user in range(6))
    for ticket in waiting[:3]:
        rooms.now += 2
        rooms.finish(running)
        running = ticket
    assert rooms.admission.estimate(waiting[4]) == pytest.approx(4)
    rooms.now += 1
    assert rooms.admission.estimate(waiting[4]) == pytest.approx(3)
    rooms.now += 60
    assert rooms.admission.estimate(waiting[4]) == 0


async def test_a_key_without_tokens_left_is_rejected_with_a_retry_time() -> None:
    rooms = Rooms(3)
    rooms.finish(rooms.enter("anna", Demand(10, 20), tokens_per_minute=60), Demand(10, 80))
    with pytest.raises(RateLimitExceededError) as refused:
        rooms.enter("anna", tokens_per_minute=60)
    assert refused.value.body()["retry_after"] == refused.value.retry_after == 31
    assert rooms.enter("bert", tokens_per_minute=60).place
    rooms.now += 31
    assert rooms.enter("anna", tokens_per_minute=60).place


async def test_reserved_tokens_that_were_not_used_are_returned() -> None:
    rooms = Rooms(1)
    for _ in range(10):
        rooms.finish(rooms.enter("anna", Demand(0, 1000), tokens_per_minute=100), Demand(0, 9))
    with pytest.raises(RateLimitExceededError):
        for _ in range(2):
            rooms.finish(rooms.enter("anna", Demand(0, 1000), tokens_per_minute=100), Demand(0, 10))
