"""The configuration with which an engine opens the prefix cache."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cache.address import shown
from cache.circuit_breaker import CircuitBreaker, Observe
from cache.keys import KeyRing
from cache.prefixes import PrefixCache
from cache.store import open_store


class CacheConfig(msgspec.Struct, frozen=True):
    """What an engine needs to open the prefix cache. It holds secrets: send it only over private channels."""

    url: str
    """`Store.url`."""
    ttl: float
    """Seconds after which an unused block expires."""
    max_bytes: int
    keys: str
    """`KeyRing.text`."""

    def open(self, what: Mapping[str, str | int | bool], observe: Observe = lambda _: None) -> PrefixCache:
        """Return the prefix cache of a model and build; `what` as in PrefixCache. Raises StoreError."""
        store = open_store(self.url, ttl=self.ttl, max_bytes=self.max_bytes)
        return PrefixCache(CircuitBreaker(store, observe=observe), KeyRing.parse(self.keys), what)

    def __repr__(self) -> str:
        """Return a description without secrets."""
        return f"CacheConfig({shown(self.url)})"
