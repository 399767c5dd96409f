"""Fair order of waiting requests: users share the engines by tokens, not by requests.

A virtual clock runs as in weighted fair queueing (Parekh and Gallager 1993). Since the cost of a request is only known
afterwards, a running request is charged an estimate, which is replaced by the actual cost when it ends, as in *Fairness
in Serving Large Language Models* (Sheng et al. 2024). Idle users accumulate no credit, and a user's debt lasts until
all others have received as much.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Final

from gateway.auth.principal import Principal

PREFILL: Final = 0.2
"""What a prompt token costs in tokens of an answer: prompts are computed about five times faster
(docs/scheduling.md)."""
SHORT: Final = 512.0
"""Maximum cost at which a user's only request counts as a conversation turn, which gets priority."""
STEP_BACK: Final = 512.0
"""Cost added to the rank of all other requests, so that turns run first. It is bounded, so that turns never starve
them."""
FIRST_ANSWER: Final = 256.0
"""Expected answer length in tokens before any has been measured."""
SWEEP: Final = 1024
"""Number of accounts at which inactive accounts without debt are deleted."""


@dataclass(frozen=True)
class Work:
    """Tokens to compute: of the prompt, and of the answer (before it ends, the maximum)."""

    prompt: int
    answer: int

    @property
    def cost(self) -> float:
        """Cost in answer tokens."""
        return self.prompt * PREFILL + self.answer

    @property
    def tokens(self) -> int:
        """Total number of tokens, for rate limits."""
        return self.prompt + self.answer


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
class Claim:
    """A waiting or running request in the fair queue."""

    user: str
    account: Account
    cost: float
    """Estimated cost divided by the user's weight."""
    ahead: bool
    """Whether the request only encodes a prompt ahead of time: it waits for all requests that generate an answer."""
    number: int
    """Order of arrival."""


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

    def claim(self, principal: Principal, work: Work, *, ahead: bool) -> Claim:
        """Add an arriving request, which waits."""
        account = self.accounts.get(principal.user)
        if account is None:
            self._sweep()
            account = self.accounts[principal.user] = Account(principal.limits.weight, self.clock, answer=self._answer)
        if not account.active:
            account.served = max(account.served, self.clock)
        account.waiting += 1
        account.turns += not ahead
        expected = Work(work.prompt, min(work.answer, round(account.answer)))
        return Claim(principal.user, account, expected.cost / account.weight, ahead, next(self._numbers))

    def withdraw(self, claim: Claim) -> None:
        """Remove a waiting request."""
        claim.account.waiting -= 1
        claim.account.turns -= not claim.ahead

    def start(self, claim: Claim) -> None:
        """Charge the estimated cost of a request that was placed."""
        account = claim.account
        account.waiting -= 1
        account.running += 1
        account.served = self._share(claim)
        account.pending += claim.cost
        self._places += 1
        account.latest = self._places

    def settle(self, claim: Claim, done: Work) -> None:
        """Replace the estimate of a request that ended by its actual cost, and advance the clock.

        The clock moves by the cost divided by the weights of all active users.
        """
        account = claim.account
        shares = sum(account.weight for account in self.accounts.values() if account.active)
        account.running -= 1
        account.turns -= not claim.ahead
        account.pending = account.pending - claim.cost if account.running else 0.0
        account.served += done.cost / account.weight
        self.clock += done.cost / shares
        if done.answer:
            account.answer += 0.2 * (done.answer - account.answer)
            self._answer += 0.05 * (done.answer - self._answer)

    def order(self, claims: list[Claim]) -> list[Claim]:
        """Return waiting requests in the order of service. Requests of one user stay in their order of arrival."""
        ahead: dict[tuple[str, bool], float] = {}
        keys = {}
        for claim in sorted(claims, key=lambda claim: claim.number):
            account, lane = claim.account, (claim.user, claim.ahead)
            begins = ahead.get(lane, self._share(claim) + account.pending)
            ahead[lane] = begins + claim.cost
            back = 0.0 if self._is_turn(claim) else STEP_BACK
            keys[claim] = (claim.ahead, begins + back, account.latest, claim.number)
        return sorted(claims, key=keys.__getitem__)

    def _share(self, claim: Claim) -> float:
        """Return the user's position on the virtual clock. An overtaken user has at most this request as credit."""
        return max(claim.account.served, self.clock - claim.cost)

    @staticmethod
    def _is_turn(claim: Claim) -> bool:
        return claim.cost <= SHORT and claim.account.turns == 1

    def _sweep(self) -> None:
        """Delete accounts of inactive users without debt: without keys every connection is a user."""
        if len(self.accounts) < self._sweep_at:
            return
        self.accounts = {
            user: account for user, account in self.accounts.items() if account.active or account.served > self.clock
        }
        self._sweep_at = max(SWEEP, 2 * len(self.accounts))
