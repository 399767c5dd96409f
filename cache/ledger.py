"""Records that gateways share and that do not grow old, such as users: sealed, in hashes of a Redis.

Every gateway has all of them on its own disk, which is what counts. What lies here is how they tell each other: it may
be lost, and is told anew then. A revision that rises with every change lets them look often and read seldom.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping

from cache.address import SERVERS, parse_address, shown
from cache.circuit_breaker import CircuitBreaker, Observe
from cache.keys import KeyRing
from cache.redis import RedisStore
from cache.sealing import Sealer


class Ledger:
    """Tables of records by name; neither names nor records can be read without the key. Methods raise StoreError."""

    @staticmethod
    def serves(url: str) -> bool:
        """Whether the store at `url` is a server that gateways can share."""
        return parse_address(url).scheme in SERVERS

    def __init__(self, url: str, keys: KeyRing, *, observe: Observe = lambda _: None) -> None:
        """What lies at `url`; that may be away, now or later."""
        self._url = url
        self._keys = keys
        self._redis = RedisStore(url, ttl=0)
        self._guard = CircuitBreaker(self._redis, observe=observe)
        self._sealer = Sealer(keys.derive("ledger"))
        self._id_keys = keys.derive("ledger ids")

    async def check_key(self) -> None:
        """Raise KeyMismatchError when what lies there was sealed under another key: nobody could read ours."""
        await asyncio.to_thread(self._check_key)

    async def revision(self, table: str) -> int | None:
        """Another one after every change of a table; None when it has no records."""
        return await asyncio.to_thread(self._guard.ask, table, lambda: self._redis.revision(table))

    async def read(self, table: str) -> list[bytes]:
        """All records; those that were tampered with, or sealed under a key that is gone, are none."""
        found = await asyncio.to_thread(self._guard.ask, table, lambda: self._redis.read_table(table))
        opened = (self._sealer.open(sealed, table.encode() + id_) for id_, sealed in found.items())
        return [body for body in opened if body is not None]

    async def write(self, table: str, records: Mapping[str, bytes]) -> int:
        """Put records under their names, and give the table's new revision."""
        sealed = {}
        for name, body in records.items():
            id_ = self._ids(name)[0]
            sealed[id_] = self._sealer.seal(body, table.encode() + id_)
        stale = [id_ for name in records for id_ in self._ids(name)[1:]]
        return await asyncio.to_thread(
            self._guard.tell, table, lambda: self._redis.write_table(table, sealed, drop=stale)
        )

    def close(self) -> None:
        """Let go of the server."""
        self._guard.close()

    def _check_key(self) -> None:
        if self._keys.check(self._guard.read_mark(), shown(self._url)):
            self._guard.write_mark(self._keys.fingerprints[0])

    def _ids(self, name: str) -> list[bytes]:
        """What a record is called, under the newest key and the older ones."""
        return [hmac.digest(key, name.encode(), "sha256").hex().encode() for key in self._id_keys]
