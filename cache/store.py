"""A store: sealed values under ids of 32 bytes, forgotten when they are old or too many.

It neither knows what it holds nor how the ids hang together, but for one thing: ids that are given together as a chain
go leaf first. Each renewal makes an id newer than the ones before it in the list, so the oldest is always a leaf, and a
block never outlives its parent.
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
    """What every backend does. All raise StoreError; methods may be called from several threads."""

    backend: str
    """Its name in metrics."""

    @property
    def url(self) -> str:
        """What another process opens to share it."""
        ...

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """The values, None where there is none. Renews nothing: it is on a request's way."""
        ...

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """Which ids have a value."""
        ...

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """Store values and renew a chain, leaf first, in one breath. Raises StoreFullError when there is no room."""
        ...

    def touch(self, ids: Sequence[bytes]) -> None:
        """Renew a chain, leaf first: none of it goes before anything that was used earlier."""
        ...

    def delete(self, ids: Sequence[bytes]) -> None:
        """Drop values; those that are not there are no error."""
        ...

    def sweep(self) -> None:
        """Drop what is past its time and give its space back."""
        ...

    def size(self) -> int:
        """Bytes that all values take."""
        ...

    def read_mark(self) -> str | None:
        """The fingerprint of the key that the values were sealed under; None when nobody has said."""
        ...

    def write_mark(self, fingerprint: str) -> None:
        """Say it."""
        ...

    def ping(self) -> None:
        """Raise StoreError unless it answers."""
        ...

    def interrupt(self) -> None:
        """End what other threads wait for in it, by an error, as far as possible."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def open_store(url: str, *, ttl: float, max_bytes: int) -> Store:
    """The store that `url` names. Raises StoreError when it can't be had, ValueError when `url` names none.

    Values unused for `ttl` seconds go; `max_bytes` bounds files and memory; a Redis has its own `maxmemory`. Files
    are not opened and servers not asked yet: they may come later.
    """
    address = parse_address(url)
    path = Path(address.path)
    if address.scheme == "memory" and address.path:
        return SharedMemoryStore(path, ttl=ttl, max_bytes=max_bytes)
    if address.scheme == "memory":
        try:
            return MemoryStore(ttl=ttl, max_bytes=max_bytes)
        except OSError as error:
            raise StoreError(f"cache: no memory file system can be used: {error}") from error
    if address.scheme == "sqlite":
        return SqliteStore(path, ttl=ttl, max_bytes=max_bytes)
    from cache.redis import RedisStore  # an engine beside another store does without the client's 8 MB

    return RedisStore(url, ttl=ttl)
