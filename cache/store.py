"""A store of sealed values under ids of 32 bytes, which evicts values that are old or too many.

A store does not know what its values mean or how ids relate, with one exception: ids given together as a chain are
ordered leaf first. Each renewal makes an id newer than the ids before it in the list. The oldest is therefore always a
leaf, and a block never outlives its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cache.address import parse_address
from cache.errors import StoreError
from cache.memory import MemoryStore, SharedMemoryStore
from cache.sqlite import SqliteStore


class Store(Protocol):
    """The interface of all backends. All methods may raise StoreError and may be called from several threads."""

    backend: str
    """The backend's name in metrics."""

    @property
    def url(self) -> str:
        """The URL with which another process opens the same store."""
        ...

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of `ids`, None where there is none. Renews nothing, because a request waits for it."""
        ...

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """Return for each id whether it has a value."""
        ...

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """Store values and renew the chain `renew`, leaf first, in one call. Raises StoreFullError if it is full.

        No value of a renewed chain is evicted before values that were used earlier.
        """
        ...

    def delete(self, ids: Sequence[bytes]) -> None:
        """Delete values. Ids without a value are ignored."""
        ...

    def sweep(self) -> None:
        """Delete expired values and free their space."""
        ...

    def read_mark(self) -> str | None:
        """Return the fingerprint of the key that the values were sealed under, or None if none is stored."""
        ...

    def write_mark(self, fingerprint: str) -> None:
        """Store the fingerprint of the key that the values are sealed under."""
        ...

    def ping(self) -> None:
        """Raise StoreError unless the store responds."""
        ...

    def interrupt(self) -> None:
        """Make pending calls of other threads fail, as far as possible."""
        ...

    def close(self) -> None:
        """Close files and connections."""
        ...


def open_store(url: str, *, ttl: float, max_bytes: int) -> Store:
    """Return the store that `url` names. Raises StoreError if it cannot be used, ValueError if `url` is invalid.

    Values unused for `ttl` seconds expire. `max_bytes` limits files and memory; a Redis has its own `maxmemory`. Files
    are opened and servers contacted on first use: they need not be available yet.
    """
    address = parse_address(url)
    path = Path(address.path)
    if address.scheme == "memory" and address.path:
        return SharedMemoryStore(path, ttl=ttl, max_bytes=max_bytes)
    if address.scheme == "memory":
        try:
            return MemoryStore(ttl=ttl, max_bytes=max_bytes)
        except OSError as error:
            raise StoreError(f"cache: no file system for memory:// can be used: {error}; name another store") from error
    if address.scheme == "sqlite":
        return SqliteStore(path, ttl=ttl, max_bytes=max_bytes)
    from cache.redis import RedisStore  # saves engines with another store the client's 8 MB

    return RedisStore(url, ttl=ttl)
