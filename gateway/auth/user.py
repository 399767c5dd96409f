"""One user: the key, as gateways that share a Redis know it, and what was done for it."""

from __future__ import annotations

import msgspec

from gateway.auth.principal import Limits


class Key(msgspec.Struct, frozen=True):
    """A user's key, as all gateways that share a Redis know it; times are in seconds of the epoch.

    Of two with one name the later is the user's, and what was revoked anywhere stays so: in whatever order gateways
    hear of each other's, they come to the same.
    """

    name: str
    tenant: str
    """A random id: whose conversations and KV blocks. A new key for an old name begins with nothing."""
    digest: bytes
    """SHA-256 of the key, whose 256 random bits need no slower hash."""
    admin: bool
    weight: float
    concurrency: int | None
    tokens_per_minute: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    @property
    def age(self) -> tuple[int, str]:
        """Larger is later. Two that were made at the same moment, out of each other's sight, are told by their ids."""
        return self.created_at, self.tenant

    def merged(self, other: Key) -> Key:
        """What counts of this and another one of the same name."""
        if self.tenant != other.tenant:
            return max(self, other, key=lambda key: key.age)
        moments = [moment for moment in (self.revoked_at, other.revoked_at) if moment is not None]
        return msgspec.structs.replace(self, revoked_at=min(moments, default=None))


class Use(msgspec.Struct, frozen=True):
    """What one gateway did for a user, as the others know it."""

    gateway: str
    tenant: str
    last_used: int | None
    requests: int
    tokens: int
    day: str
    requests_today: int
    tokens_today: int


class User(Key, frozen=True):
    """A user with what was done for them."""

    last_used: int | None
    requests: int
    tokens: int
    day: str
    """The local day that `requests_today` and `tokens_today` are of."""
    requests_today: int
    tokens_today: int

    def is_valid(self, now: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def limits(self) -> Limits:
        """What this user may have."""
        return Limits(self.concurrency, self.tokens_per_minute, self.weight)

    def and_used(self, use: Use, day: str) -> User:
        """Return this user with what another gateway did for them; "today" is `day`, whatever clock a gateway has."""
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
        """What other gateways know."""
        return Key(*(getattr(self, name) for name in Key.__struct_fields__))
