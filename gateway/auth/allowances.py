"""Daily allowances: the tokens that users may use on one local day of the gateway."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from gateway.auth.user import User, day
from gateway.errors import RateLimitExceededError


class DailyTokens:
    """Today's tokens by tenant: at this gateway, counted in memory, and at others, as they last published them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Count from nothing; `clock` returns seconds since the epoch."""
        self._clock = clock
        self._day = day(clock())
        self._here: dict[str, int] = {}
        self._elsewhere: Mapping[str, int] = {}

    def load(self, users: Iterable[User]) -> None:
        """Continue with the stored counters of users for whom nothing is counted yet."""
        self._start_day()
        for user in users:
            self._here.setdefault(user.tenant, user.tokens_today if user.day == self._day else 0)

    def add(self, tenant: str, tokens: int) -> None:
        """Count tokens that a request has used."""
        self._start_day()
        self._here[tenant] = self._here.get(tenant, 0) + tokens

    def set_elsewhere(self, tokens: Mapping[str, int]) -> None:
        """Set today's tokens at other gateways."""
        self._start_day()
        self._elsewhere = tokens

    def used(self, tenant: str) -> int:
        """Return the tokens that a tenant has used today."""
        self._start_day()
        return self._here.get(tenant, 0) + self._elsewhere.get(tenant, 0)

    def check(self, tenant: str, allowance: int | None) -> None:
        """Raise RateLimitExceededError, with the seconds until tomorrow, if the allowance is used up."""
        if allowance is not None and self.used(tenant) >= allowance:
            seconds = max(1, math.ceil(self.resets_at - self._clock()))
            raise RateLimitExceededError(
                f"this key has used its {allowance} tokens of today; try again in {seconds} s, when a new day begins",
                seconds,
                limit="tokens_per_day",
            )

    @property
    def resets_at(self) -> int:
        """When the next local day begins, in seconds since the epoch."""
        now = time.localtime(self._clock())
        return int(time.mktime((now.tm_year, now.tm_mon, now.tm_mday + 1, 0, 0, 0, 0, 0, -1)))

    def _start_day(self) -> None:
        today = day(self._clock())
        if today != self._day:
            self._day, self._here, self._elsewhere = today, {}, {}
