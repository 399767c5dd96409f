"""What operators see of users: their state and limits, and their usage by day."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.auth.principal import shown
from gateway.auth.usage import Usage, last_days
from gateway.auth.user import User, day

PERIODS: Final = {"today": 1, "7_days": 7, "30_days": 30}
"""Days of each period of a report."""
_FORMULA: Final = ("=", "+", "-", "@")
"""First characters by which spreadsheets recognize a formula."""
Days = Mapping[str, Usage]
"""Usage by date."""


def state(user: User, now: float) -> str:
    """Return whether a user's key is valid, expired or revoked."""
    if user.revoked_at is not None:
        return "revoked"
    return "valid" if user.is_valid(now) else "expired"


def described(user: User, now: float) -> dict[str, Any]:
    """Return the fields of a user that may be shown: neither the key's digest nor the whole tenant id."""
    today = user.day == day(now)
    return {
        "name": user.name,
        "id": shown(user.tenant),
        "state": state(user, now),
        "admin": user.admin,
        "tokens_per_day": user.tokens_per_day,
        "tokens_per_minute": user.tokens_per_minute,
        "concurrency": user.concurrency,
        "weight": user.weight,
        "created_at": user.created_at,
        "expires_at": user.expires_at,
        "last_used": user.last_used,
        "requests_today": user.requests_today if today else 0,
        "requests": user.requests,
        "tokens_today": user.tokens_today if today else 0,
        "tokens": user.tokens,
    }


def periods(days: Days, now: float) -> dict[str, dict[str, int]]:
    """Return the requests and tokens of each period."""
    sums = {}
    for name, length in PERIODS.items():
        used = [days[date] for date in last_days(day(now), length) if date in days]
        sums[name] = {"requests": sum(one.requests for one in used), "tokens": sum(one.tokens for one in used)}
    return sums


def by_day(days: Days, now: float, count: int) -> list[dict[str, Any]]:
    """Return the usage of each of the last `count` days, the oldest first, days without usage included."""
    dates = last_days(day(now), count)
    return [
        {"date": date, "requests": used.requests, "tokens": used.tokens}
        for date, used in ((date, days.get(date, Usage())) for date in dates)
    ]


def usage_csv(users: Iterable[User], days: Mapping[str, Days]) -> str:
    """Return one line per user and day with usage, as CSV that spreadsheets read without running formulas."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["name", "id", "date", "requests", "tokens"])
    for user in users:
        name = f"'{user.name}" if user.name.startswith(_FORMULA) else user.name
        for date, used in sorted(days.get(user.tenant, {}).items()):
            writer.writerow([name, shown(user.tenant), date, used.requests, used.tokens])
    return text.getvalue()
