"""Fair order of waiting requests: users share the engines by tokens, not by requests.

A virtual clock runs as in weighted fair queueing (Parekh and Gallager 1993). Since the cost of a request is only known
afterwards, a running request is charged an estimate, which is replaced by the actual cost when it ends, as in *Fairness
in Serving Large Language Models* (Sheng et al. 2024). Idle users accumulate no credit, and a user's debt lasts until
all others have received as much.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.auth.principal import Principal
from gateway.scheduling.placement import Demand, Placement

SHORT: Final = 512.0
"""Maximum cost at which a user's only request counts as a conversation turn, which gets priority."""
STEP_BACK: Final = 512.0
"""Cost added to the rank of all other requests, so that turns run first. It is bounded, so that turns never starve
them."""
FIRST_ANSWER: Final = 256.0
"""Expected answer length in tokens before any has been measured."""
SWEEP: Final = 1024
"""Number of accounts at which inactive accounts without debt are deleted."""


@dataclass(eq=False)
class Account:
    """One user's served and running work. Costs are in answer tokens, divided by the user's weight."""

    weight: float = 1.0
    served: float = 0.0
    """Position on the virtual clock up to which the user has been served."""
    pending: float = 0.0
    """Sum of the estimated costs of running requests."""
    running: int = 0
    waiting: int = 0
    turns: int = 0
    """Running and waiting requests that generate an answer."""
    latest: int = 0
    """Number of the user's latest placement: between equal ranks, the user who was placed longer ago is next."""
    answer: float = FIRST_ANSWER
    """Running mean of the user's answers, in tokens."""

    @property
    def active(self) -> bool:
        """Whether the user has running or waiting requests."""
        return bool(self.running or self.waiting)


@dataclass(eq=False)
class Ticket:
    """An admitted request, waiting or running, from `Admission.enter` to `Admission.leave`."""

    demand: Demand
    principal: Principal
    ahead: bool
    """Whether nobody waits for the request, such as a prompt encoded ahead of time: it waits for all other requests."""
    account: Account
    cost: float
    """Estimated cost divided by the user's weight."""
    number: int
    """Order of arrival."""
    reserved: int
    """Tokens reserved from the caller's rate limit."""
    since: float
    """Time of arrival; after placement, time of placement: monotonic seconds."""
    idle: bool = False
    """Whether the request starts only while no other one runs."""
    follows: bool = False
    """Whether a request of the same group entered before: a group is one request to the limits of the queue."""
    overtaken: int = 0
    """How many requests have overtaken this one because they fitted and it did not."""
    placed: asyncio.Future[Placement] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The placement, or QueueFullError or QueueTimeoutError."""
    timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> Placement | None:
        """The placement; None while the request waits or after an error."""
        done = self.placed.done() and not self.placed.cancelled() and self.placed.exception() is None
        return self.placed.result() if done else None


@dataclass
class Ledger:
    """The users' accounts and the virtual clock."""

    clock: float = 0.0
    """Virtual time: the cost, per unit of weight, served to a user who has been active since the start."""
    accounts: dict[str, Account] = field(default_factory=dict)
    _answer: float = FIRST_ANSWER
    _places: int = 0
    _sweep_at: int = SWEEP
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def enter(self, demand: Demand, principal: Principal, *, ahead: bool, reserved: int, now: float) -> Ticket:
        """Return the ticket of an arriving request, which waits."""
        account = self.accounts.get(principal.user)
        if account is None:
            self._sweep()
            account = self.accounts[principal.user] = Account(principal.limits.weight, self.clock, answer=self._answer)
        if not account.active:
            account.served = max(account.served, self.clock)
        account.waiting += 1
        account.turns += not ahead
        expected = replace(demand, answer=min(demand.answer, round(account.answer)))
        cost = expected.cost / account.weight
        return Ticket(demand, principal, ahead, account, cost, next(self._numbers), reserved, now)

    def withdraw(self, ticket: Ticket) -> None:
        """Remove a waiting request."""
        ticket.account.waiting -= 1
        ticket.account.turns -= not ticket.ahead

    def start(self, ticket: Ticket) -> None:
        """Charge the estimated cost of a request that was placed."""
        account = ticket.account
        account.waiting -= 1
        account.running += 1
        account.served = self._share(ticket)
        account.pending += ticket.cost
        self._places += 1
        account.latest = self._places

    def settle(self, ticket: Ticket, done: Demand) -> None:
        """Replace the estimate of a request that ended by its actual cost, and advance the clock.

        The clock moves by the cost divided by the weights of all active users.
        """
        account = ticket.account
        shares = sum(account.weight for account in self.accounts.values() if account.active)
        account.running -= 1
        account.turns -= not ticket.ahead
        account.pending = account.pending - ticket.cost if account.running else 0.0
        account.served += done.cost / account.weight
        self.clock += done.cost / shares
        if done.answer and not ticket.ahead:
            account.answer += 0.2 * (done.answer - account.answer)
            self._answer += 0.05 * (done.answer - self._answer)

    def order(self, tickets: list[Ticket]) -> list[Ticket]:
        """Return waiting requests in the order of service. Requests of one user stay in their order of arrival."""
        next_begin: dict[tuple[str, bool], float] = {}  # on the virtual clock, after the user's earlier requests
        keys = {}
        for ticket in sorted(tickets, key=lambda ticket: ticket.number):
            account, key = ticket.account, (ticket.principal.user, ticket.ahead)
            begin = next_begin.get(key, self._share(ticket) + account.pending)
            next_begin[key] = begin + ticket.cost
            back = 0.0 if self._is_turn(ticket) else STEP_BACK
            keys[ticket] = (ticket.ahead, begin + back, account.latest, ticket.number)
        return sorted(tickets, key=keys.__getitem__)

    def _share(self, ticket: Ticket) -> float:
        """Return the user's position on the virtual clock. An overtaken user has at most this request as credit."""
        return max(ticket.account.served, self.clock - ticket.cost)

    @staticmethod
    def _is_turn(ticket: Ticket) -> bool:
        """Return whether the request counts as a conversation turn, which gets priority."""
        return ticket.cost <= SHORT and ticket.account.turns == 1

    def _sweep(self) -> None:
        """Delete accounts of inactive users without debt: without keys every connection is a user."""
        if len(self.accounts) < self._sweep_at:
            return
        self.accounts = {
            user: account for user, account in self.accounts.items() if account.active or account.served > self.clock
        }
        self._sweep_at = max(SWEEP, 2 * len(self.accounts))
