"""Penalties for users whose requests crash engines: each crash interrupts everybody else's responses.

A crash is divided equally among the requests that the engine was running, because the cause cannot be determined.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from gateway.errors import EngineUnavailableError

ENGINES: Final = 4.0
"""Crashes within SECONDS at which a user is blocked: two requests, each of which failed at its second engine."""
SECONDS: Final = 600.0
"""Seconds for which crashes count, and for which a user is then blocked."""
USERS: Final = 1024
"""Maximum users with recorded crashes; the least recent are evicted."""
DEATHS: Final = 64
"""Maximum crashes recorded per user."""

log = structlog.get_logger("gateway")


@dataclass
class _Account:
    deaths: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=DEATHS))
    """Time of each crash and the user's share of it."""
    until: float = 0.0
    """Time at which the block ends."""


class Penalties:
    """Recorded crashes and blocked users, in memory: a restart clears them, and gateways do not share them.

    A user is `Principal.user`: without keys every connection is a user, and a new connection starts without crashes.
    Addresses are not penalized instead, because that would block everybody behind the same proxy or router.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty table; `clock` returns seconds."""
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of users with recorded crashes."""
        return len(self._accounts)

    def check(self, user: str) -> None:
        """Raise EngineUnavailableError, with the remaining seconds, if the user is blocked."""
        account = self._accounts.get(user)
        seconds = math.ceil(account.until - self._clock()) if account is not None else 0
        if seconds > 0:
            raise EngineUnavailableError(
                f"your requests crashed engines repeatedly; try again in {seconds} s", retry_after=seconds
            )

    def blame(self, user: str, engines: float) -> None:
        """Record that a failed request of the user crashed `engines` engines; a shared crash counts as a fraction."""
        if engines <= 0:
            return
        now = self._clock()
        account = self._accounts.setdefault(user, _Account())
        self._accounts.move_to_end(user)
        if len(self._accounts) > USERS:
            self._accounts.popitem(last=False)
        account.deaths.append((now, engines))
        while account.deaths[0][0] <= now - SECONDS:
            account.deaths.popleft()
        if sum(share for _, share in account.deaths) >= ENGINES - 1e-9:  # thirds do not add up to a whole
            account.deaths.clear()
            account.until = now + SECONDS
            log.warning("user blocked: requests crash engines", user=user, seconds=SECONDS)
