"""Tokens and messages a minute and user: buckets that fill steadily and hold a minute's worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.auth.principal import Principal
from gateway.errors import RateLimitExceededError

SWEEP: Final = 1024
"""Buckets kept before those that are full again are forgotten."""


@dataclass
class Bucket:
    """What is left, as of a moment; below zero while debts last."""

    level: float
    at: float
    limit: int
    """A minute's worth."""

    def fill(self, now: float) -> None:
        """Let time pass."""
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / 60)
        self.at = now


class Buckets:
    """One bucket a user; those who come and go for ever leave nothing behind."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._sweep_at = SWEEP

    def of(self, user: str, limit: int) -> Bucket:
        """The user's, filled up to now; `limit` is a minute's worth."""
        now = self._clock()
        bucket = self._buckets.get(user)
        if bucket is None:
            self._sweep(now)
            bucket = self._buckets[user] = Bucket(limit, now, limit)
        bucket.limit = limit  # the operator may have given the user another
        bucket.fill(now)
        return bucket

    def _sweep(self, now: float) -> None:
        if len(self._buckets) < self._sweep_at:
            return
        for bucket in self._buckets.values():
            bucket.fill(now)
        self._buckets = {user: bucket for user, bucket in self._buckets.items() if bucket.level < bucket.limit}
        self._sweep_at = max(SWEEP, 2 * len(self._buckets))


class TokenRates:
    """Tokens of the keys that have a limit. A request takes its estimate when it comes, the difference when it ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self._buckets = Buckets(clock)

    def reserve(self, principal: Principal, tokens: int) -> int:
        """Reserve the tokens that a request may need, and return how many. Raises RateLimitExceededError."""
        limit = principal.limits.tokens_per_minute
        if limit is None:
            return 0
        bucket = self._buckets.of(principal.user, limit)
        if bucket.level <= 0:
            raise _exceeded(bucket, f"this key may use {limit} tokens a minute, which are used up")
        reserved = min(tokens, limit)
        bucket.level -= reserved
        return reserved

    def settle(self, principal: Principal, reserved: int, used: int) -> None:
        """Charge the tokens that a request used instead of those that it reserved."""
        if principal.limits.tokens_per_minute is not None:
            bucket = self._buckets.of(principal.user, principal.limits.tokens_per_minute)
            bucket.level += reserved - used


class MessageRates:
    """Messages of everybody."""

    def __init__(self, clock: Callable[[], float], *, limit: int) -> None:
        """`limit` messages a minute and user; `clock` gives seconds."""
        self._buckets = Buckets(clock)
        self._limit = limit

    def take(self, principal: Principal) -> None:
        """The caller sent one. Raises RateLimitExceededError."""
        bucket = self._buckets.of(principal.user, self._limit)
        if bucket.level < 1:
            raise _exceeded(bucket, f"you may send {self._limit} messages a minute")
        bucket.level -= 1


def _exceeded(bucket: Bucket, text: str) -> RateLimitExceededError:
    seconds = max(1, math.ceil((1 - bucket.level) * 60 / bucket.limit))
    return RateLimitExceededError(f"{text}; try again in {seconds} s", seconds)
