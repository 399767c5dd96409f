"""The queue in front of the engines: fair between users and bounded, with positions, wait estimates and a timeout."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from gateway.auth.principal import Principal
from gateway.auth.rates import TokenRates
from gateway.errors import ApiError, QueueFullError, QueueTimeoutError
from gateway.scheduling.fair_queue import Claim, Ledger, Work

R = TypeVar("R")
P = TypeVar("P")

OVERTAKEN: Final = 8
"""Requests that may overtake one that fits into no engine yet; then all others wait until it is placed."""
TRIED: Final = 16
"""Placement attempts each time a place becomes free: if that many requests do not fit, the next will not either."""
FIRST_TURN: Final = 5.0
"""Assumed duration of a turn in seconds before any has been measured."""


class Ticket(Generic[R, P]):
    """An admitted request, waiting or running, from `Admission.enter` to `Admission.leave`."""

    def __init__(self, request: R, principal: Principal, claim: Claim, reserved: int, now: float) -> None:
        """Create a ticket. `reserved` tokens are reserved from the caller's rate limit; `now` is monotonic seconds."""
        self.request = request
        self.principal = principal
        self.claim = claim
        self.reserved = reserved
        self.since = now
        """Time of arrival; after placement, time of placement."""
        self.overtaken = 0
        """How many requests have overtaken this one because they fitted and it did not."""
        self.placed: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        """The placement, or QueueFullError or QueueTimeoutError."""
        self.timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> P | None:
        """The placement; None while the request waits or after an error."""
        done = self.placed.done() and not self.placed.cancelled() and self.placed.exception() is None
        return self.placed.result() if done else None


class Admission(Generic[R, P]):
    """The queue of requests that wait for a placement.

    `limit` requests may wait, half of them from one user, each for `timeout` seconds.
    """

    def __init__(
        self,
        place: Callable[[R], P | None],
        release: Callable[[P], None],
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
        self._waiting: dict[Claim, Ticket[R, P]] = {}
        self._running: set[Ticket[R, P]] = set()
        self._ranks: dict[Claim, int] = {}
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

    def enter(self, request: R, principal: Principal, work: Work, *, ahead: bool = False) -> Ticket[R, P]:
        """Admit a request; it is placed at once or waits. Call `leave` when it ends, however it ends.

        `ahead` marks a prompt that is encoded ahead of time and that nobody waits for. Raises QueueFullError or
        RateLimitExceededError.
        """
        reserved = self._rates.reserve(principal, work.tokens)
        claim = self._ledger.claim(principal, work, ahead=ahead)
        ticket: Ticket[R, P] = Ticket(request, principal, claim, reserved, self._clock())
        self._waiting[claim] = ticket
        self.pump()
        if ticket.place is None:
            victim = self._select_victim(claim)
            if victim is ticket:
                self.leave(ticket)
                raise self._full(claim)
            if victim is not None:
                self._reject(victim, self._full(victim.claim))
        if ticket.place is None:
            ticket.timer = asyncio.get_running_loop().call_later(self._timeout, self._expire, ticket)
        return ticket

    def leave(self, ticket: Ticket[R, P], done: Work | None = None) -> None:
        """Remove a request that ended or whose client left; `done` is the work it took. A second call does nothing."""
        if self._waiting.pop(ticket.claim, None) is not None:
            self._ledger.withdraw(ticket.claim)
            done = None
            ticket.placed.cancel()
        elif ticket in self._running:
            self._running.remove(ticket)
            self._ledger.settle(ticket.claim, done or Work(0, 0))
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
        unplaced: list[Ticket[R, P]] = []
        blocked: set[str] = set()
        queue = iter(self._order())
        while (claim := next(queue, None)) is not None and len(unplaced) < TRIED:
            ticket = self._waiting[claim]
            if claim.user in blocked or self._is_busy(ticket):
                continue
            place = self._place(ticket.request)
            if place is not None:
                self._start(ticket, place, unplaced)
                unplaced, blocked, queue = [], set(), iter(self._order())  # the user's rank has changed
            elif ticket.overtaken >= OVERTAKEN:
                return
            else:
                unplaced.append(ticket)
                blocked.add(claim.user)

    def position(self, ticket: Ticket[R, P]) -> int:
        """Return the queue position: 1 for the next request, 0 if the request does not wait.

        The positions of all waiting requests are a permutation of 1 to their number.
        """
        if ticket.claim not in self._waiting:
            return 0
        if not self._ranks:
            self._ranks = {claim: rank for rank, claim in enumerate(self._order(), 1)}
        return self._ranks[ticket.claim]

    def estimate(self, ticket: Ticket[R, P]) -> float:
        """Return the estimated seconds until placement: the position times the recent interval between placements."""
        gap = self._turn_seconds / max(1, self.running) if self._gap is None else self._gap
        return max(0.0, self.position(ticket) * gap - (self._clock() - self._latest_start))

    def _order(self) -> list[Claim]:
        return self._ledger.order(list(self._waiting))

    @staticmethod
    def _is_busy(ticket: Ticket[R, P]) -> bool:
        limit = ticket.principal.limits.concurrency
        return limit is not None and ticket.claim.account.running >= limit

    def _start(self, ticket: Ticket[R, P], place: P, overtaken: list[Ticket[R, P]]) -> None:
        for other in overtaken:
            other.overtaken += 1
        now = self._clock()
        if ticket.timer is not None:  # the request waited, so places are scarce and their interval is meaningful
            gap = now - max(self._latest_start, ticket.since)
            self._gap = gap if self._gap is None else self._gap + 0.2 * (gap - self._gap)
        self._latest_start = ticket.since = now
        del self._waiting[ticket.claim]
        self._running.add(ticket)
        self._ledger.start(ticket.claim)
        self._cancel_timer(ticket)
        self._ranks = {}
        ticket.placed.set_result(place)

    def _select_victim(self, newest: Claim) -> Ticket[R, P] | None:
        """Return the request to reject now that `newest` waits, or None if there is room.

        It is the newest request of the user with the most waiting requests; prompts encoded ahead of time go first.
        """
        if newest.account.waiting > max(1, self._limit // 2):
            return self._waiting[newest]
        if len(self._waiting) <= self._limit:
            return None
        pool = [claim for claim in self._waiting if claim.ahead] or list(self._waiting)
        counts = Counter(claim.user for claim in pool)
        most = max(counts.values())
        if newest in pool and counts[newest.user] == most:
            return self._waiting[newest]
        return self._waiting[max((claim for claim in pool if counts[claim.user] == most), key=lambda c: c.number)]

    def _full(self, claim: Claim) -> QueueFullError:
        if claim.account.waiting >= max(1, self._limit // 2):
            return QueueFullError(f"{claim.account.waiting} of your requests are already waiting; try again later")
        if not self._limit:
            return QueueFullError("no engine is free and queue_limit is 0; try again later")
        return QueueFullError(f"the queue is full: {self._limit} requests are waiting; try again later")

    def _expire(self, ticket: Ticket[R, P]) -> None:
        self._reject(ticket, QueueTimeoutError(f"no engine was free within {self._timeout:g} s; try again later"))

    def _reject(self, ticket: Ticket[R, P], error: ApiError) -> None:
        if not ticket.placed.done():
            ticket.placed.set_exception(error)
            ticket.placed.exception()  # marks it as retrieved: the client may have left, so that nobody awaits it
        self.leave(ticket)

    @staticmethod
    def _cancel_timer(ticket: Ticket[R, P]) -> None:
        if ticket.timer is not None:
            ticket.timer.cancel()
            ticket.timer = None
