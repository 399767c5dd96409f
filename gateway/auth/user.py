"""One user: the key, as gateways that share a Redis exchange it, and its usage."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

import msgspec

from gateway.auth.principal import Limits


class Key(msgspec.Struct, frozen=True):
    """A user's key, as gateways that share a Redis exchange it. Times are in seconds since the epoch.

    Of two keys with one name, the later counts; a key revoked or replaced at one gateway is so at all. All gateways
    therefore reach the same state, in whatever order they receive each other's keys.
    """

    name: str
    tenant: str
    """Random id of the owner of conversations and KV blocks. A new key for an old name gets a new, empty tenant."""
    digest: bytes
    """SHA-256 of the key. The key has 256 random bits, so no slower hash is needed."""
    admin: bool
    weight: float
    concurrency: int | None
    tokens_per_minute: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    rotated_at: int = 0
    """When the key was replaced last; 0 if never."""
    old_digest: bytes | None = None
    """SHA-256 of the key before that."""
    old_until: int = 0
    """When that key stops working."""
    tokens_per_day: int | None = None
    limits_at: int = 0
    """When the limits were set last; 0 in records of earlier versions."""

    @property
    def age(self) -> tuple[int, str]:
        """Order of creation: larger is later. The tenant id orders keys that gateways created in the same second."""
        return self.created_at, self.tenant

    def merged(self, other: Key) -> Key:
        """Return the key that results from this key and another of the same name."""
        if self.tenant != other.tenant:
            return max(self, other, key=lambda key: key.age)
        moments = [moment for moment in (self.revoked_at, other.revoked_at) if moment is not None]
        rotated = max(self, other, key=lambda key: (key.rotated_at, key.digest))
        limited = max(self, other, key=lambda key: (key.limits_at, key.limits.order))
        return msgspec.structs.replace(
            rotated,
            created_at=self.created_at,
            admin=self.admin,
            revoked_at=min(moments, default=None),
            limits_at=limited.limits_at,
            **asdict(limited.limits),
        )

    @property
    def limits(self) -> Limits:
        """The limits of this user."""
        return Limits(self.concurrency, self.tokens_per_minute, self.weight, self.tokens_per_day)


class Use(msgspec.Struct, frozen=True):
    """A user's usage at one gateway, as published to the others."""

    gateway: str
    tenant: str
    last_used: int | None
    requests: int
    tokens: int
    day: str
    requests_today: int
    tokens_today: int


class DailyUse(msgspec.Struct, frozen=True):
    """A user's usage at one gateway by local date, as published to the others: requests and tokens."""

    gateway: str
    tenant: str
    days: dict[str, tuple[int, int]]


class User(Key, frozen=True, kw_only=True):
    """A user with usage counters."""

    last_used: int | None
    requests: int
    tokens: int
    day: str
    """Local date of `requests_today` and `tokens_today`."""
    requests_today: int
    tokens_today: int

    def credentials(self, now: float) -> list[bytes]:
        """Return the digests of the keys that work at `now`: none if the user is revoked, two after a replacement."""
        if not self.is_valid(now):
            return []
        return [self.digest, *([self.old_digest] if self.old_digest is not None and now < self.old_until else [])]

    def is_valid(self, now: float) -> bool:
        """Return whether the user is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def with_use(self, use: Use, day: str) -> User:
        """Return this user with the usage at another gateway added; "today" is `day`, whatever that gateway's clock."""
        today = [each for each in (self, use) if each.day == day]
        return msgspec.structs.replace(
            self,
            last_used=max((moment for moment in (self.last_used, use.last_used) if moment is not None), default=None),
            requests=self.requests + use.requests,
            tokens=self.tokens + use.tokens,
            day=day,
            requests_today=sum(each.requests_today for each in today),
            tokens_today=sum(each.tokens_today for each in today),
        )

    @property
    def key(self) -> Key:
        """The part that is shared with other gateways."""
        return Key(*(getattr(self, name) for name in Key.__struct_fields__))


def changes(before: Mapping[str, User], after: Mapping[str, User]) -> Iterator[tuple[User, str]]:
    """Yield what has changed between two states, by tenant, in the words of the log."""
    for tenant, user in after.items():
        old = before.get(tenant)
        if old is None:
            yield user, "added"
            continue
        if user.revoked_at is not None and old.revoked_at is None:
            yield user, "key revoked"
        if user.digest != old.digest:
            yield user, "key rotated"
        if user.limits != old.limits:
            yield user, "limits changed"


def find_user(users: Iterable[User], key: str) -> User | None:
    """Return the user whose key this is, or was before a replacement.

    Compares all keys in constant time, so that timing reveals nothing to guessers.
    """
    wanted, found = digest(key), None
    for user in users:
        for one in (user.digest, user.old_digest):
            if one is not None and hmac.compare_digest(one, wanted):
                found = user
    return found


def digest(key: str) -> bytes:
    """Return the SHA-256 digest of a key, which is stored instead of the key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def day(now: float) -> str:
    """Return the local date of `now`, in seconds since the epoch."""
    return time.strftime("%Y-%m-%d", time.localtime(now))
