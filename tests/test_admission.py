"""The queue: bounded, in order, never losing a place."""

from __future__ import annotations

import asyncio

import pytest

from gateway.admission import Admission
from gateway.errors import QueueFullError, QueueTimeoutError


class Places:
    """A dispatcher with so many places, each the number of the request that took it."""

    def __init__(self, free: int) -> None:
        self.free = free

    def give_back(self, _: int) -> None:
        self.free += 1

    def __call__(self, request: int) -> int | None:
        if self.free == 0:
            return None
        self.free -= 1
        return request


def queue(free: int, *, limit: int = 3, timeout: float = 5) -> tuple[Places, Admission[int, int]]:
    places = Places(free)
    return places, Admission(places, places.give_back, limit=limit, timeout=timeout)


async def enter(admission: Admission[int, int], request: int, heard: list[int] | None = None) -> asyncio.Task[int]:
    """A request that has reached the queue."""
    told = [] if heard is None else heard
    task = asyncio.create_task(admission.enter(request, told.append))
    await asyncio.sleep(0)
    return task


async def test_a_free_place_is_given_at_once_without_a_position() -> None:
    _, admission = queue(1)
    heard: list[int] = []
    assert await admission.enter(1, heard.append) == 1
    assert heard == []


async def test_places_are_given_in_order_and_positions_move() -> None:
    places, admission = queue(0)
    heard: list[int] = []
    first, second = await enter(admission, 1), await enter(admission, 2, heard)
    places.free = 1
    admission.pump()
    assert await first == 1
    assert heard == [2, 1]
    assert not second.done()
    places.free = 1
    admission.pump()
    assert await second == 2


async def test_nobody_overtakes_those_who_wait() -> None:
    places, admission = queue(0)
    first = await enter(admission, 1)
    places.free = 1  # free, but not given yet
    late = await enter(admission, 2)
    admission.pump()
    assert await first == 1
    assert not late.done()
    late.cancel()


async def test_a_full_queue_refuses_and_keeps_those_who_wait() -> None:
    _, admission = queue(0, limit=2)
    waiting = [await enter(admission, i) for i in range(2)]
    with pytest.raises(QueueFullError):
        await admission.enter(9, lambda _: None)
    assert len(admission) == 2
    for task in waiting:
        task.cancel()


async def test_waiting_ends_after_the_time_out_and_frees_the_queue() -> None:
    _, admission = queue(0, timeout=0.01)
    with pytest.raises(QueueTimeoutError):
        await admission.enter(1, lambda _: None)
    assert len(admission) == 0


async def test_one_who_leaves_moves_the_others_up() -> None:
    _, admission = queue(0)
    heard: list[int] = []
    first, second = await enter(admission, 1), await enter(admission, 2, heard)
    first.cancel()
    await asyncio.sleep(0.001)
    assert heard[-1] == 1
    second.cancel()


async def test_a_place_given_to_one_who_just_left_goes_to_the_next() -> None:
    places, admission = queue(0)
    first, second = await enter(admission, 1), await enter(admission, 2)
    places.free = 1
    admission.pump()
    first.cancel()  # after it got its place, before it woke
    assert await second == 2
    assert first.cancelled()
    assert places.free == 0
