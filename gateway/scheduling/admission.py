"""The queue in front of the engines: fair between users and bounded, with positions, wait estimates and a timeout."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from gateway.auth.principal import Principal
from gateway.auth.rates import TokenRates
from gateway.errors import ApiError, QueueFullError, QueueTimeoutError
from gateway.scheduling.fair_queue import Ledger, Ticket
from gateway.scheduling.placement import Demand, Placement

OVERTAKEN: Final = 8
"""Requests that may overtake one that fits into no engine yet; then all others wait until it is placed."""
TRIED: Final = 16
"""Placement attempts each time a place becomes free: if that many requests do not fit, the next will not either."""
FIRST_TURN: Final = 5.0
"""Assumed duration of a turn in seconds before any has been measured."""


class Admission:
    """The queue of requests that wait for a placement.

    `limit` requests may wait, half of them from one user, each for `timeout` seconds. The requests of a group count as
    one, here and for the concurrency of their user: only the first can be refused or time out.
    """

    def __init__(
        self,
        place: Callable[[Demand], Placement | None],
        release: Callable[[Placement], None],
        *,
        limit: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty queue.

        `place` returns a placement for a request, or None if it fits nowhere; `release` takes back the placement of a
        request that leaves. `clock` returns seconds.
        """
        self._place = place
        self._release = release
        self._limit = limit
        self._timeout = timeout
        self._clock = clock
        self._ledger = Ledger()
        self._rates = TokenRates(clock)
        self._waiting: set[Ticket] = set()
        self._running: set[Ticket] = set()
        self._ranks: dict[Ticket, int] = {}
        self._turn_seconds = FIRST_TURN
        self._gap: float | None = None
        self._latest_start = clock()

    def __len__(self) -> int:
        """Return the number of waiting requests."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of requests that have a placement."""
        return len(self._running)

    def by_user(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of waiting and of running requests by user."""
        waiting, running = (Counter(ticket.principal.user for ticket in one) for one in (self._waiting, self._running))
        return {user: (waiting[user], running[user]) for user in waiting.keys() | running.keys()}

    def enter(self, demand: Demand, principal: Principal, *, ahead: bool = False, idle: bool = False) -> Ticket:
        """Admit a request; it is placed at once or waits. Call `leave` when it ends, however it ends.

        `ahead` marks a prompt that is encoded ahead of time and that nobody waits for; `idle` marks a request that
        starts only while no other one runs. Raises QueueFullError or RateLimitExceededError.
        """
        reserved = self._rates.reserve(principal, demand.tokens)
        ticket = self._ledger.enter(demand, principal, ahead=ahead or idle, reserved=reserved, now=self._clock())
        ticket.idle = idle
        ticket.follows = demand.group is not None and any(
            other.demand.group == demand.group for other in (*self._waiting, *self._running)
        )
        self._waiting.add(ticket)
        self.pump()
        if ticket.place is None and not ticket.follows:
            victim = self._select_victim(ticket)
            if victim is ticket:
                self.leave(ticket)
                raise self._full(ticket)
            if victim is not None:
                self._reject(victim, self._full(victim))
        if ticket.place is None and not ticket.follows:
            ticket.timer = asyncio.get_running_loop().call_later(self._timeout, self._expire, ticket)
        return ticket

    def leave(self, ticket: Ticket, done: Demand | None = None) -> None:
        """Remove a request that ended or whose client left; `done` is what it took. A second call does nothing."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._ledger.withdraw(ticket)
            done = None
            ticket.placed.cancel()
        elif ticket in self._running:
            self._running.remove(ticket)
            self._ledger.settle(ticket, done or Demand(0, 0))
            self._turn_seconds += 0.1 * (self._clock() - ticket.since - self._turn_seconds)
            self._release(ticket.placed.result())
        else:
            return
        self._cancel_timer(ticket)
        self._rates.settle(ticket.principal, ticket.reserved, done.tokens if done else 0)
        self.pump()

    def pump(self) -> None:
        """Place waiting requests in order, as far as they fit.

        A request that does not fit is overtaken by others that do, at most OVERTAKEN times. Requests of a user at the
        concurrency limit are skipped.
        """
        self._ranks = {}
        unplaced: list[Ticket] = []
        blocked: set[str] = set()
        queue = iter(self._order())
        while (ticket := next(queue, None)) is not None and len(unplaced) < TRIED:
            if ticket.principal.user in blocked or self._is_busy(ticket) or (ticket.idle and self._running):
                continue
            place = self._place(ticket.demand)
            if place is not None:
                self._start(ticket, place, unplaced)
                unplaced, blocked, queue = [], set(), iter(self._order())  # the user's rank has changed
            elif ticket.overtaken >= OVERTAKEN:
                return
            else:
                unplaced.append(ticket)
                blocked.add(ticket.principal.user)

    def position(self, ticket: Ticket) -> int:
        """Return the queue position: 1 for the next request, 0 if the request does not wait.

        The positions of all waiting requests are a permutation of 1 to their number.
        """
        if ticket not in self._waiting:
            return 0
        if not self._ranks:
            self._ranks = {waiting: rank for rank, waiting in enumerate(self._order(), 1)}
        return self._ranks[ticket]

    def estimate(self, ticket: Ticket) -> float:
        """Return the estimated seconds until placement: the position times the recent interval between placements."""
        gap = self._turn_seconds / max(1, self.running) if self._gap is None else self._gap
        return max(0.0, self.position(ticket) * gap - (self._clock() - self._latest_start))

    def _order(self) -> list[Ticket]:
        return self._ledger.order(list(self._waiting))

    def _is_busy(self, ticket: Ticket) -> bool:
        """Return whether the user's concurrency lets the request wait."""
        limit = ticket.principal.limits.concurrency
        if limit is None or ticket.account.running < limit:
            return False
        running = {other.demand.group or other for other in self._running if other.account is ticket.account}
        return (ticket.demand.group or ticket) not in running and len(running) >= limit

    def _start(self, ticket: Ticket, place: Placement, overtaken: list[Ticket]) -> None:
        for other in overtaken:
            other.overtaken += 1
        now = self._clock()
        if ticket.timer is not None:  # the request waited, so places are scarce and their interval is meaningful
            gap = now - max(self._latest_start, ticket.since)
            self._gap = gap if self._gap is None else self._gap + 0.2 * (gap - self._gap)
        self._latest_start = ticket.since = now
        self._waiting.remove(ticket)
        self._running.add(ticket)
        self._ledger.start(ticket)
        self._cancel_timer(ticket)
        self._ranks = {}
        ticket.placed.set_result(place)

    def _select_victim(self, newest: Ticket) -> Ticket | None:
        """Return the request to reject now that `newest` waits, or None if there is room.

        It is the newest request of the user with the most waiting requests; prompts encoded ahead of time go first.
        """
        waiting = [ticket for ticket in self._waiting if not ticket.follows]
        if self._waiting_of(newest) > max(1, self._limit // 2):
            return newest
        if len(waiting) <= self._limit:
            return None
        pool = [ticket for ticket in waiting if ticket.ahead] or waiting
        counts = Counter(ticket.principal.user for ticket in pool)
        most = max(counts.values())
        if newest in pool and counts[newest.principal.user] == most:
            return newest
        longest = (ticket for ticket in pool if counts[ticket.principal.user] == most)
        return max(longest, key=lambda ticket: ticket.number)

    def _waiting_of(self, ticket: Ticket) -> int:
        """Return the number of waiting requests of the ticket's user."""
        return sum(other.account is ticket.account and not other.follows for other in self._waiting)

    def _full(self, ticket: Ticket) -> QueueFullError:
        if (own := self._waiting_of(ticket)) >= max(1, self._limit // 2):
            return QueueFullError(f"{own} of your requests are already waiting; try again later")
        if not self._limit:
            return QueueFullError("no engine is free and queue_limit is 0; try again later")
        return QueueFullError(f"the queue is full: {self._limit} requests are waiting; try again later")

    def _expire(self, ticket: Ticket) -> None:
        self._reject(ticket, QueueTimeoutError(f"no engine was free within {self._timeout:g} s; try again later"))

    def _reject(self, ticket: Ticket, error: ApiError) -> None:
        if not ticket.placed.done():
            ticket.placed.set_exception(error)
            ticket.placed.exception()  # marks it as retrieved: the client may have left, so that nobody awaits it
        self.leave(ticket)

    @staticmethod
    def _cancel_timer(ticket: Ticket) -> None:
        if ticket.timer is not None:
            ticket.timer.cancel()
            ticket.timer = None
