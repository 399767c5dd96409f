"""Users whose requests kill engines are refused for a while: everybody else's answers pause at each of those deaths.

An engine's death is shared out between the requests that it had, as nobody can tell which of them it died of.
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
"""Engines that one user's failed requests may kill within SECONDS: two requests, each of which failed at its second."""
SECONDS: Final = 600.0
"""How long deaths are held against a user, and how long that user is refused then."""
USERS: Final = 1024
"""Users about whom anything is remembered; the oldest go."""
DEATHS: Final = 64
"""Deaths remembered of one user."""

log = structlog.get_logger("gateway")


@dataclass
class _Account:
    deaths: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=DEATHS))
    """When, and how much of an engine."""
    until: float = 0.0
    """When the user may ask again."""


class Penalties:
    """In memory: a gateway that starts again begins with trust, and each of several judges by what it saw itself.

    Users are callers' (see Caller.user): without keys every connection is one, and a new one begins with trust too.
    Addresses are not blamed instead: everybody behind one proxy or router would pay for the one who kills engines.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def __len__(self) -> int:
        """Users about whom something is remembered."""
        return len(self._accounts)

    def check(self, user: str) -> None:
        """Raises EngineUnavailableError, with the seconds that are left, for a user who is held off."""
        account = self._accounts.get(user)
        seconds = math.ceil(account.until - self._clock()) if account is not None else 0
        if seconds > 0:
            raise EngineUnavailableError(
                f"your requests killed engines again and again; no more are taken for {seconds} s", retry_after=seconds
            )

    def blame(self, user: str, engines: float) -> None:
        """A request of the user's failed after it had killed so many `engines`; a shared one counts in part."""
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
            log.warning("a user whose requests kill engines is held off", user=user, seconds=SECONDS)
