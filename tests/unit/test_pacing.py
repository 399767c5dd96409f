"""Turns of large messages: owners take turns, and each turn is followed by a rest in proportion to its work."""

from __future__ import annotations

import asyncio

from gateway.transport.pacing import REST_RATIO, Pacer
from gateway.transport.text import BATCH, joined


class Clock:
    """A clock that only work and the loop's timers move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    """Let the loop run all callbacks that are ready."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_owners_take_turns_however_many_messages_one_of_them_sends() -> None:
    pacer, order = Pacer(Clock()), list[str]()

    async def message(owner: str, name: str) -> None:
        await pacer.turn(owner)
        with pacer.work():
            order.append(name)

    names = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2")]
    async with asyncio.TaskGroup() as group:
        for owner, name in names:
            group.create_task(message(owner, name))
    assert order == ["a1", "b1", "a2", "b2", "a3"]


async def test_one_iteration_of_the_loop_does_the_work_of_one_turn_only() -> None:
    pacer = Pacer(Clock())
    most = in_iteration = 0

    async def message() -> None:
        nonlocal in_iteration
        await pacer.turn("x")
        with pacer.work():
            in_iteration += 1

    tasks = [asyncio.create_task(message()) for _ in range(50)]
    while not all(task.done() for task in tasks):
        in_iteration = 0
        await asyncio.sleep(0)
        most = max(most, in_iteration)
    assert most == 1


async def test_a_turn_waits_until_the_loop_has_rested_in_proportion_to_the_work() -> None:
    pacer = Pacer(clock := Clock())
    for seconds in (0.01, 0.02):
        await pacer.turn("x")
        with pacer.work():
            clock.now += seconds
        waiting = asyncio.create_task(pacer.turn("y"))
        clock.now += REST_RATIO * seconds - 0.002
        await settle()
        assert not waiting.done()
        clock.now += 0.002
        await asyncio.wait_for(waiting, 10)


async def test_work_outside_of_a_turn_delays_the_next_one() -> None:
    pacer = Pacer(clock := Clock())
    waiting = asyncio.create_task(pacer.turn("x"))
    with pacer.work():
        clock.now += 0.01
    await settle()
    assert not waiting.done()
    clock.now += REST_RATIO * 0.01
    await asyncio.wait_for(waiting, 10)


async def test_a_cancelled_turn_delays_no_other_turn() -> None:
    pacer = Pacer(Clock())
    first, second = (asyncio.create_task(pacer.turn("x")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 10)


async def test_other_tasks_run_while_many_tokens_are_converted() -> None:
    turns, converted = 0, list[int]()

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def convert(token: int) -> bytes:
        converted.append(token)
        return b"%d" % token

    others = asyncio.create_task(count())
    text = await joined([1, 2] * 5 * BATCH, convert, b",")
    others.cancel()
    assert text == b",".join([b"1", b"2"] * 5 * BATCH)
    assert converted == [1, 2]
    assert turns >= 10
