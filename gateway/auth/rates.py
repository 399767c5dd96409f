"""Limits on tokens and messages per user and minute: token buckets that hold one minute's allowance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.auth.principal import Principal
from gateway.errors import RateLimitExceededError

SWEEP: Final = 1024
"""Number of buckets at which full ones are deleted."""


@dataclass
class Bucket:
    """The remaining allowance at a moment; negative after an underestimated request."""

    level: float
    at: float
    """Time of the last refill, in seconds."""
    limit: int
    """Allowance per minute, and capacity."""

    def fill(self, now: float) -> None:
        """Refill the bucket for the time since the last refill."""
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / 60)
        self.at = now


class Buckets:
    """One bucket per user. Full buckets are deleted, so that short-lived users do not accumulate."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Create an empty table; `clock` returns seconds."""
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._sweep_at = SWEEP

    def of(self, user: str, limit: int) -> Bucket:
        """Return the user's bucket, refilled until now; `limit` is the allowance per minute."""
        now = self._clock()
        bucket = self._buckets.get(user)
        if bucket is None:
            self._sweep(now)
            bucket = self._buckets[user] = Bucket(limit, now, limit)
        bucket.limit = limit  # the operator may have changed it
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
    """Token limits of users. An arriving request reserves an estimate; when it ends, the difference is settled."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Create an empty table; `clock` returns seconds."""
        self._buckets = Buckets(clock)

    def reserve(self, principal: Principal, tokens: int) -> int:
        """Reserve the tokens that a request may need and return the reserved number. Raises RateLimitExceededError."""
        limit = principal.limits.tokens_per_minute
        if limit is None:
            return 0
        bucket = self._buckets.of(principal.user, limit)
        if bucket.level <= 0:
            raise _exceeded(bucket, "tokens_per_minute", f"this key has used its {limit} tokens per minute")
        reserved = min(tokens, limit)
        bucket.level -= reserved
        return reserved

    def settle(self, principal: Principal, reserved: int, used: int) -> None:
        """Replace the reserved tokens of a request by those that it used."""
        if principal.limits.tokens_per_minute is not None:
            bucket = self._buckets.of(principal.user, principal.limits.tokens_per_minute)
            bucket.level += reserved - used


class MessageRates:
    """The message limit, the same for every user."""

    def __init__(self, clock: Callable[[], float], *, limit: int) -> None:
        """Allow `limit` messages per user and minute; `clock` returns seconds."""
        self._buckets = Buckets(clock)
        self._limit = limit

    def charge(self, principal: Principal) -> None:
        """Count one message of the caller. Raises RateLimitExceededError."""
        bucket = self._buckets.of(principal.user, self._limit)
        if bucket.level < 1:
            raise _exceeded(bucket, "messages_per_minute", f"the limit is {self._limit} messages per minute")
        bucket.level -= 1


def _exceeded(bucket: Bucket, limit: str, text: str) -> RateLimitExceededError:
    seconds = max(1, math.ceil((1 - bucket.level) * 60 / bucket.limit))
    return RateLimitExceededError(f"{text}; try again in {seconds} s", seconds, limit=limit)
