"""Records that gateways share and that do not expire, such as users: sealed, in hashes and streams of a Redis.

The authoritative copy is on each gateway's own disk. The ledger only carries changes between gateways; if it is lost,
gateways publish its contents again. A revision that rises with every change makes polling cheap.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable, Mapping

from cache.address import SERVERS, parse_address, shown
from cache.circuit_breaker import CircuitBreaker, Observe
from cache.keys import KeyRing
from cache.redis import RedisStore
from cache.sealing import Sealer


class Ledger:
    """Tables of records by name. Without the key neither names nor records can be read. Methods raise StoreError."""

    @staticmethod
    def serves(url: str) -> bool:
        """Return whether the store at `url` is a server that gateways can share."""
        return parse_address(url).scheme in SERVERS

    def __init__(self, url: str, keys: KeyRing, *, observe: Observe = lambda _: None) -> None:
        """Use the Redis at `url`, which may be unavailable now or later."""
        self._url = url
        self._keys = keys
        self._redis = RedisStore(url, ttl=0)
        self._store = CircuitBreaker(self._redis, observe=observe)
        self._sealer = Sealer(keys.derive("ledger"))
        self._id_keys = keys.derive("ledger ids")

    async def check_key(self) -> None:
        """Raise KeyMismatchError if the data was sealed under another key: other gateways could not read ours."""
        await asyncio.to_thread(self._check_key)

    async def revision(self, table: str) -> int | None:
        """Return a number that differs after every change of a table; None if the table has no records."""
        return await asyncio.to_thread(self._store.read, _operation(table), lambda: self._redis.revision(table))

    async def read(self, table: str) -> list[bytes]:
        """Return all records, without those that were tampered with or sealed under an unknown key."""
        found = await asyncio.to_thread(self._store.read, _operation(table), lambda: self._redis.read_table(table))
        opened = (self._sealer.open(sealed, table.encode() + id_) for id_, sealed in found.items())
        return [body for body in opened if body is not None]

    async def write(self, table: str, records: Mapping[str, bytes]) -> int:
        """Store records under their names and return the table's new revision."""
        sealed = {}
        for name, body in records.items():
            id_ = self._ids(name)[0]
            sealed[id_] = self._sealer.seal(body, table.encode() + id_)
        stale = [id_ for name in records for id_ in self._ids(name)[1:]]
        return await asyncio.to_thread(
            self._store.write, _operation(table), lambda: self._redis.write_table(table, sealed, drop=stale)
        )

    async def read_one(self, table: str, name: str) -> bytes | None:
        """Return one record, or None if there is none that can be opened."""
        ids = self._ids(name)
        found = await asyncio.to_thread(
            self._store.read, _operation(table), lambda: self._redis.read_fields(table, ids)
        )
        opened = (self._sealer.open(one, table.encode() + id_) for id_, one in zip(ids, found, strict=True) if one)
        return next((body for body in opened if body is not None), None)

    async def drop(self, table: str, names: Iterable[str]) -> None:
        """Delete records."""
        ids = [id_ for name in names for id_ in self._ids(name)]
        await asyncio.to_thread(
            self._store.write, _operation(table), lambda: self._redis.write_table(table, {}, drop=ids)
        )

    async def drop_table(self, table: str) -> None:
        """Delete all records of a table."""
        await asyncio.to_thread(self._store.write, _operation(table), lambda: self._redis.drop_table(table))

    async def append(self, log: str, entry: bytes, *, most: int) -> None:
        """Append an entry to a log of about `most` entries."""
        sealed = self._sealer.seal(entry, log.encode())
        await asyncio.to_thread(self._store.write, log, lambda: self._redis.append(log, sealed, most=most))

    async def newest(self, log: str) -> str:
        """Return the position of a log's newest entry; empty if the log is."""
        return await asyncio.to_thread(self._store.read, log, lambda: self._redis.newest(log))

    async def has(self, log: str, position: str) -> bool:
        """Return whether a log holds an entry at `position`."""
        return await asyncio.to_thread(self._store.read, log, lambda: self._redis.has(log, position))

    async def entries(self, log: str, after: str, *, most: int) -> list[tuple[str, bytes | None]]:
        """Return the next entries of a log with their positions; None stands for an entry under an unknown key."""
        found = await asyncio.to_thread(self._store.read, log, lambda: self._redis.entries(log, after, most=most))
        return [(at, self._sealer.open(entry, log.encode())) for at, entry in found]

    def private_table(self, kind: str, owner: str) -> str:
        """Return the name of an owner's table of a kind, which does not reveal the owner."""
        return f"{kind}:{hmac.digest(self._id_keys[-1], owner.encode(), 'sha256').hex()}"

    @property
    def reachable(self) -> bool:
        """Whether calls are passed to Redis."""
        return self._store.reachable

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def _check_key(self) -> None:
        if self._keys.check(self._store.read_mark(), shown(self._url)):
            self._store.write_mark(self._keys.fingerprints[0])

    def _ids(self, name: str) -> list[bytes]:
        """Return a record's ids, the first under the newest key, the rest under older keys."""
        return [hmac.digest(key, name.encode(), "sha256").hex().encode() for key in self._id_keys]


def _operation(table: str) -> str:
    """Return the name of operations on a table in metrics, in which no owner may be recognized."""
    return table.partition(":")[0]
