"""Tokens a minute and user: a bucket that fills steadily and may hold a minute's worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gateway.caller import Caller
from gateway.errors import RateLimitExceededError
from gateway.fairness import Work


@dataclass
class Bucket:
    """Tokens left, as of a moment; below zero while debts last."""

    level: float
    at: float


class TokenRates:
    """The users' buckets. A request takes its estimate when it comes, and the difference when it ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def reserve(self, caller: Caller, work: Work) -> int:
        """Take the tokens that the request may need, and say how many. Raises RateLimitExceededError."""
        limit = caller.limits.tokens_per_minute
        if limit is None:
            return 0
        bucket = self._filled(caller.user, limit)
        if bucket.level <= 0:
            seconds = math.ceil((1 - bucket.level) * 60 / limit)
            raise RateLimitExceededError(
                f"this key may use {limit} tokens a minute, which are used up; try again in {seconds} s", seconds
            )
        reserved = min(work.tokens, limit)
        bucket.level -= reserved
        return reserved

    def settle(self, caller: Caller, reserved: int, done: Work | None) -> None:
        """Give back what was not needed, or take what was needed more."""
        if caller.limits.tokens_per_minute is not None:
            bucket = self._filled(caller.user, caller.limits.tokens_per_minute)
            bucket.level += reserved - (done.tokens if done else 0)

    def _filled(self, user: str, limit: int) -> Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(user, Bucket(limit, now))
        bucket.level = min(limit, bucket.level + (now - bucket.at) * limit / 60)
        bucket.at = now
        return bucket
