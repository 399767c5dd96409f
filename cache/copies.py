"""Copies of conversations in the Redis that gateways share, and the journal of deleted conversations.

A deletion leaves two things. A tombstone under the record's own name makes the deletion visible to every read of that
record. An entry in the journal makes every gateway delete its own copy within a second, also of records that nobody
reads. Without the key, neither copies nor tombstones reveal tenants or response ids.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from cache.circuit_breaker import READ_SECONDS, CircuitBreaker, Observe
from cache.keys import KeyRing
from cache.redis import RedisStore
from cache.sealing import Sealer

JOURNAL: Final = "deleted"
ENTRIES: Final = 1 << 16
"""Minimum length of the journal. A gateway that missed more entries still sees the tombstones of records it reads."""
BATCH: Final = 256
"""Journal entries per read."""


class Deletion(NamedTuple):
    """One entry of the journal."""

    tenant: str
    id: str
    at: float
    """Time of the deletion in seconds since the epoch, by the clock of the gateway that deleted the record."""


class Copies:
    """The copies in one Redis. All methods block for a bounded time and raise StoreError while it is unavailable."""

    def __init__(
        self,
        url: str,
        keys: KeyRing,
        *,
        ttl: float,
        observe: Observe = lambda _: None,
        write_seconds: float = READ_SECONDS,
    ) -> None:
        """Use the Redis at `url`; connects on first use. Copies and tombstones unused for `ttl` seconds expire."""
        self._redis = RedisStore(url, ttl=ttl, names="turn")
        # A turn is acknowledged only after the attempt to copy it, so the deadline must be short.
        self.store = CircuitBreaker(self._redis, observe=observe, write_seconds=write_seconds)
        self._sealer = Sealer(keys.derive("turns"))
        self._id_keys = keys.derive("turn ids")

    @property
    def reachable(self) -> bool:
        """Whether calls are passed to Redis."""
        return self.store.reachable

    def put(self, tenant: str, id_: str, sealed: bytes) -> None:
        """Store a copy, unless the record was deleted."""
        if not self.is_deleted(tenant, id_):
            self.store.put_many([(self.ids("copy", tenant, id_)[0], sealed)])

    def get(self, tenant: str, id_: str) -> bytes | None:
        """Return the copy of a record; None if there is none, or if the record was deleted."""
        copies, tombstones = self.ids("copy", tenant, id_), self.ids("gone", tenant, id_)
        found = self.store.get_many([*copies, *tombstones])
        if self._is_tombstone(tenant, id_, found[len(copies) :]):
            return None
        opened = (self._sealer.open(value, name(tenant, id_)) for value in found if value is not None)
        return next((body for body in opened if body is not None), None)

    def is_deleted(self, tenant: str, id_: str) -> bool:
        """Return whether a gateway has deleted the record."""
        return self._is_tombstone(tenant, id_, self.store.get_many(self.ids("gone", tenant, id_)))

    def delete(self, deletion: Deletion) -> str:
        """Delete the copy of a record for all gateways, and return the position of its entry in the journal."""
        tenant, id_ = deletion.tenant, deletion.id
        tombstone = self._sealer.seal(b"", _tombstone(tenant, id_))
        self.store.put_many([(self.ids("gone", tenant, id_)[0], tombstone)])
        self.store.delete(self.ids("copy", tenant, id_))
        entry = self._sealer.seal(msgspec.msgpack.encode(deletion), JOURNAL.encode())
        return self.store.write("journal", lambda: self._redis.append(JOURNAL, entry, most=ENTRIES))

    def journal_end(self) -> str:
        """Return the position of the newest entry of the journal; empty when there is none."""
        return self.store.read("journal", lambda: self._redis.newest(JOURNAL))

    def journal_has(self, position: str) -> bool:
        """Return whether the journal holds an entry at `position`."""
        return self.store.read("journal", lambda: self._redis.has(JOURNAL, position))

    def journal_after(self, position: str) -> list[tuple[str, Deletion | None]]:
        """Return the next entries with their positions; None stands for an entry not sealed under this key."""
        found = self.store.read("journal", lambda: self._redis.entries(JOURNAL, position, most=BATCH))
        return [(at, self._read(entry)) for at, entry in found]

    def close(self) -> None:
        """Close the connections."""
        self.store.close()

    def ids(self, kind: str, tenant: str, id_: str) -> list[bytes]:
        """Return the ids of a record's copy or tombstone, the first under the newest key, the rest under older keys."""
        text = kind.encode() + b"\0" + name(tenant, id_)
        return [hmac.digest(key, text, "sha256") for key in self._id_keys]

    def _read(self, entry: bytes) -> Deletion | None:
        body = self._sealer.open(entry, JOURNAL.encode())
        return None if body is None else msgspec.msgpack.decode(body, type=Deletion)

    def _is_tombstone(self, tenant: str, id_: str, found: Sequence[bytes | None]) -> bool:
        """Return whether `found` contains a tombstone sealed by a gateway: write access to Redis must not delete."""
        sealed_as = _tombstone(tenant, id_)
        return any(value is not None and self._sealer.open(value, sealed_as) is not None for value in found)


def is_before(position: str, other: str) -> bool:
    """Return whether one position of the journal precedes another; the empty position is the first."""
    return _order(position) < _order(other)


def name(tenant: str, id_: str) -> bytes:
    """Return the name that a record is sealed under."""
    return f"{tenant}\0{id_}".encode()


def _order(position: str) -> tuple[int, int]:
    milliseconds, _, number = position.partition("-")
    return int(milliseconds or 0), int(number or 0)


def _tombstone(tenant: str, id_: str) -> bytes:
    """Return the name that a tombstone is sealed under, which differs from every record's."""
    return b"gone\0" + name(tenant, id_)
