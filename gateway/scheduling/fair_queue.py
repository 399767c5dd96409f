"""Who is next: users share the engines by tokens, not by requests.

A virtual clock runs as in weighted fair queueing (Parekh and Gallager 1993), with what is known only afterwards handled
as in *Fairness in Serving Large Language Models* (Sheng et al. 2024): a request is charged an estimate while it runs,
and what it really took when it ends. Nobody saves up credit by asking for nothing, and nobody escapes a debt by waiting
less than until everybody else had as much.
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
"""Cost up to which a user's only request counts as a turn of a conversation, which others gladly let pass."""
STEP_BACK: Final = 512.0
"""What all other requests stand behind such a turn, in cost: bounded, so that turns never keep the others waiting."""
FIRST_ANSWER: Final = 256.0
"""Expected tokens of an answer, before any was seen."""
SWEEP: Final = 1024
"""Accounts kept before those that owe nothing are forgotten."""


@dataclass(frozen=True)
class Work:
    """Tokens to compute: of the prompt, and of the answer at most."""

    prompt: int
    answer: int

    @property
    def cost(self) -> float:
        """What it takes, in tokens of an answer."""
        return self.prompt * PREFILL + self.answer

    @property
    def tokens(self) -> int:
        """All of them, as a rate limit counts."""
        return self.prompt + self.answer


@dataclass(eq=False)
class Account:
    """What one user had and has; costs in tokens of an answer, over the user's weight."""

    weight: float = 1.0
    served: float = 0.0
    """On the virtual clock, where the user's share of the past ends."""
    pending: float = 0.0
    """Estimates of what runs now."""
    running: int = 0
    waiting: int = 0
    turns: int = 0
    """Of both, those that want an answer."""
    latest: int = 0
    """Number of the latest request that got a place: among equals, who waited longer for one is next."""
    answer: float = FIRST_ANSWER
    """Running mean of the user's answers, in tokens."""

    @property
    def active(self) -> bool:
        """Has anything in the house."""
        return bool(self.running or self.waiting)


@dataclass(eq=False)
class Claim:
    """A request as fairness sees it."""

    user: str
    account: Account
    cost: float
    """Estimated, over the user's weight."""
    ahead: bool
    """Encodes ahead of time: waits for all who want an answer."""
    number: int
    """Order of arrival."""


@dataclass
class Ledger:
    """The users' accounts and the virtual clock."""

    clock: float = 0.0
    """The share that a user has had who took everything due since the beginning."""
    accounts: dict[str, Account] = field(default_factory=dict)
    _answer: float = FIRST_ANSWER
    _places: int = 0
    _sweep_at: int = SWEEP
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def claim(self, principal: Principal, work: Work, *, ahead: bool) -> Claim:
        """A request arrives and waits."""
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
        """It leaves without having had a place."""
        claim.account.waiting -= 1
        claim.account.turns -= not claim.ahead

    def start(self, claim: Claim) -> None:
        """It has a place."""
        account = claim.account
        account.waiting -= 1
        account.running += 1
        account.served = self._share(claim)
        account.pending += claim.cost
        self._places += 1
        account.latest = self._places

    def settle(self, claim: Claim, done: Work) -> None:
        """It ended: the estimate becomes what it really took, and the clock moves by everybody's share of that."""
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
        """Those who wait, as they will be served if nothing changes. A user's own keep their order."""
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
        """Where the claim's user stands. Who was passed over has this one request of credit, and never more."""
        return max(claim.account.served, self.clock - claim.cost)

    @staticmethod
    def _is_turn(claim: Claim) -> bool:
        return claim.cost <= SHORT and claim.account.turns == 1

    def _sweep(self) -> None:
        """Forget users who are gone and owe nothing: without keys every connection is a user."""
        if len(self.accounts) < self._sweep_at:
            return
        self.accounts = {
            user: account for user, account in self.accounts.items() if account.active or account.served > self.clock
        }
        self._sweep_at = max(SWEEP, 2 * len(self.accounts))
