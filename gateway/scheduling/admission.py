"""The queue in front of the engines: fair between users, bounded, with positions, estimates and a time-out."""

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
"""Requests that may pass one that finds no room yet; then all wait until it has found it."""
TRIED: Final = 16
"""Requests that are tried each time a place becomes free: none of the next will fit when so many do not."""
FIRST_TURN: Final = 5.0
"""Seconds that a turn is thought to take, before any was seen."""


class Ticket(Generic[R, P]):
    """A request in the house, from `Admission.enter` to `Admission.leave`."""

    def __init__(self, request: R, principal: Principal, claim: Claim, reserved: int, now: float) -> None:
        """`reserved` tokens were taken from the caller's rate; `now` is in monotonic seconds."""
        self.request = request
        self.principal = principal
        self.claim = claim
        self.reserved = reserved
        self.since = now
        """When it came; once it has a place, when it got that."""
        self.overtaken = 0
        self.placed: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        """Its place, or QueueFullError or QueueTimeoutError."""
        self.timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> P | None:
        """Its place, once it has one."""
        done = self.placed.done() and not self.placed.cancelled() and self.placed.exception() is None
        return self.placed.result() if done else None


class Admission(Generic[R, P]):
    """Lets requests wait until `place` finds one a place, which is the dispatcher's to say.

    `limit` requests may wait, each for `timeout` seconds; of one user, half of that.
    """

    def __init__(
        self,
        place: Callable[[R], P | None],
        give_back: Callable[[P], None],
        *,
        limit: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`give_back` takes the place of one who leaves; `clock` gives seconds."""
        self._place = place
        self._give_back = give_back
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
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return len(self._running)

    def enter(self, request: R, principal: Principal, work: Work, *, ahead: bool = False) -> Ticket[R, P]:
        """Take a request in: it has a place at once, or waits for one. `leave` must follow, however it ends.

        `ahead` is for work that nobody waits for. Raises QueueFullError or RateLimitExceededError.
        """
        reserved = self._rates.reserve(principal, work.tokens)
        claim = self._ledger.claim(principal, work, ahead=ahead)
        ticket: Ticket[R, P] = Ticket(request, principal, claim, reserved, self._clock())
        self._waiting[claim] = ticket
        self.pump()
        if ticket.place is None:
            victim = self._one_too_many(claim)
            if victim is ticket:
                self.leave(ticket)
                raise self._full(claim)
            if victim is not None:
                self._dismiss(victim, self._full(victim.claim))
        if ticket.place is None:
            ticket.timer = asyncio.get_running_loop().call_later(self._timeout, self._expire, ticket)
        return ticket

    def leave(self, ticket: Ticket[R, P], done: Work | None = None) -> None:
        """It ended, or its client left; `done` is what it really took. A second call does nothing."""
        if self._waiting.pop(ticket.claim, None) is not None:
            self._ledger.withdraw(ticket.claim)
            done = None
            ticket.placed.cancel()
        elif ticket in self._running:
            self._running.remove(ticket)
            self._ledger.settle(ticket.claim, done or Work(0, 0))
            self._turn_seconds += 0.1 * (self._clock() - ticket.since - self._turn_seconds)
            self._give_back(ticket.placed.result())
        else:
            return
        self._forget_timer(ticket)
        self._rates.settle(ticket.principal, ticket.reserved, done.tokens if done else 0)
        self.pump()

    def pump(self) -> None:
        """Give places that became free, in order.

        Who finds no room is passed by those who do, but not for ever. A user with enough in flight is passed, too.
        """
        self._ranks = {}
        refused: list[Ticket[R, P]] = []
        blocked: set[str] = set()
        queue = iter(self._order())
        while (claim := next(queue, None)) is not None and len(refused) < TRIED:
            ticket = self._waiting[claim]
            if claim.user in blocked or self._is_busy(ticket):
                continue
            place = self._place(ticket.request)
            if place is not None:
                self._start(ticket, place, refused)
                refused, blocked, queue = [], set(), iter(self._order())  # its user stands elsewhere now
            elif ticket.overtaken >= OVERTAKEN:
                return
            else:
                refused.append(ticket)
                blocked.add(claim.user)

    def position(self, ticket: Ticket[R, P]) -> int:
        """1 for the next; 0 for one that does not wait. Those of all who wait are a permutation."""
        if ticket.claim not in self._waiting:
            return 0
        if not self._ranks:
            self._ranks = {claim: rank for rank, claim in enumerate(self._order(), 1)}
        return self._ranks[ticket.claim]

    def estimate(self, ticket: Ticket[R, P]) -> float:
        """Seconds until it gets a place: its position times the time between two places lately."""
        gap = self._turn_seconds / max(1, self.running) if self._gap is None else self._gap
        return max(0.0, self.position(ticket) * gap - (self._clock() - self._latest_start))

    def _order(self) -> list[Claim]:
        return self._ledger.order(list(self._waiting))

    @staticmethod
    def _is_busy(ticket: Ticket[R, P]) -> bool:
        most = ticket.principal.limits.concurrency
        return most is not None and ticket.claim.account.running >= most

    def _start(self, ticket: Ticket[R, P], place: P, passed: list[Ticket[R, P]]) -> None:
        for other in passed:
            other.overtaken += 1
        now = self._clock()
        if ticket.timer is not None:  # it waited, so places are scarce: this is how fast they come
            gap = now - max(self._latest_start, ticket.since)
            self._gap = gap if self._gap is None else self._gap + 0.2 * (gap - self._gap)
        self._latest_start = ticket.since = now
        del self._waiting[ticket.claim]
        self._running.add(ticket)
        self._ledger.start(ticket.claim)
        self._forget_timer(ticket)
        self._ranks = {}
        ticket.placed.set_result(place)

    def _one_too_many(self, newest: Claim) -> Ticket[R, P] | None:
        """Who must go now that `newest` waits: the newest of who has the most, what is ahead of time first."""
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
            return QueueFullError(f"{claim.account.waiting} requests of yours wait already; try again in a while")
        if not self._limit:
            return QueueFullError("no engine is free now; try again in a while")
        return QueueFullError(f"{self._limit} requests wait already; try again in a while")

    def _expire(self, ticket: Ticket[R, P]) -> None:
        self._dismiss(ticket, QueueTimeoutError(f"no engine was free within {self._timeout:g} s; try again later"))

    def _dismiss(self, ticket: Ticket[R, P], error: ApiError) -> None:
        if not ticket.placed.done():
            ticket.placed.set_exception(error)
            ticket.placed.exception()  # nobody has to ask for it: its client may have left in the same moment
        self.leave(ticket)

    @staticmethod
    def _forget_timer(ticket: Ticket[R, P]) -> None:
        if ticket.timer is not None:
            ticket.timer.cancel()
            ticket.timer = None
