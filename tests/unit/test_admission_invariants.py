"""The queue under random requests: it stays within its bounds, and loses no place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ApiError, QueueFullError
from gateway.scheduling.fair_queue import Ticket
from gateway.scheduling.placement import Demand
from tests.unit.test_admission import BATCH, TURN, Rooms, size

Step = tuple[str, int, int, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "enter", "finish", "leave"]), st.integers(0, 5), st.integers(1, 4), st.booleans()
    ),
    max_size=60,
)


def in_a_loop(body: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Run one example of a property: futures need a loop."""

    async def main() -> None:
        await body(*arguments)

    asyncio.run(main())


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(0, 8), st.integers(0, 2))
def test_bounds_hold_positions_are_a_permutation_and_no_place_is_lost(
    story: list[Step], limit: int, concurrency: int
) -> None:
    in_a_loop(run_story, story, limit, concurrency or None)


async def run_story(story: list[Step], limit: int, concurrency: int | None) -> None:
    """Run the steps of `story`, check the queue after each step, then let all requests finish."""
    rooms = Rooms(4, limit=limit)
    tickets: list[Ticket] = []
    for kind, number, count, flag in story:
        rooms.now += 0.5
        if kind == "enter":
            try:
                demand = BATCH if flag else TURN
                limits: dict[str, Any] = {} if concurrency is None else {"concurrency": concurrency}
                tickets.append(rooms.enter(f"{number}", demand, size=count, ahead=number == 5, **limits))
            except ApiError as error:
                assert isinstance(error, QueueFullError)
        elif tickets:
            ticket = tickets[number % len(tickets)]
            if (kind == "finish") == (ticket.place is not None):
                rooms.admission.leave(ticket, Demand(count, count * 10) if flag else None)
                tickets.remove(ticket)
        tickets = [t for t in tickets if t.place is not None or not t.placed.done()]
        check(rooms, tickets, limit, concurrency)
    while tickets:  # no request starves: each is placed when others end
        running = [ticket for ticket in tickets if ticket.place is not None]
        assert running
        rooms.finish(running[0])
        tickets.remove(running[0])
    assert rooms.free == 4
    assert len(rooms.admission) == rooms.admission.running == 0


def check(rooms: Rooms, tickets: list[Ticket], limit: int, concurrency: int | None) -> None:
    """What holds at any moment."""
    waiting = [ticket for ticket in tickets if ticket.place is None]
    running = [ticket for ticket in tickets if ticket.place is not None]
    assert len(rooms.admission) == len(waiting) <= limit
    assert rooms.admission.running == len(running)
    assert sorted(rooms.positions(*waiting)) == list(range(1, len(waiting) + 1))
    assert max(Counter(t.principal.user for t in waiting).values(), default=0) <= max(1, limit // 2)
    assert rooms.free + sum(size(ticket.demand) for ticket in running) == 4
    if concurrency is not None:
        assert max(Counter(t.principal.user for t in running).values(), default=0) <= concurrency
    assert all(rooms.admission.estimate(ticket) >= 0 for ticket in waiting)
