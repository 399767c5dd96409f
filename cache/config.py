"""What an engine is told, to open the prefix cache."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cache.address import shown
from cache.circuit_breaker import CircuitBreaker, Observe
from cache.keys import KeyRing
from cache.prefixes import PrefixCache
from cache.store import open_store


class CacheConfig(msgspec.Struct, frozen=True):
    """What an engine needs to open the prefix cache. It holds secrets: it must go no way that others can see."""

    url: str
    """As Store.url gives it."""
    ttl: float
    """Seconds that a block stays unused."""
    max_bytes: int
    keys: str
    """KeyRing.text."""

    def open(self, what: Mapping[str, str | int | bool], observe: Observe = lambda _: None) -> PrefixCache:
        """The prefix cache of a model and build; `what` as in PrefixCache. Raises StoreError."""
        store = open_store(self.url, ttl=self.ttl, max_bytes=self.max_bytes)
        return PrefixCache(CircuitBreaker(store, observe=observe), KeyRing.parse(self.keys), what)

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"CacheConfig({shown(self.url)})"
