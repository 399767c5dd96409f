"""Connections to one Redis: to its address, or to the master that Sentinels report."""

from __future__ import annotations

import threading
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry
from redis.sentinel import Sentinel

from cache.address import Address
from cache.replies import BoundedParser

CONNECT_SECONDS: Final = 0.25
"""Connection timeout in seconds."""
READ_SECONDS: Final = 0.5
"""Longest pause within a reply in seconds; CircuitBreaker bounds the whole call."""
CONNECTIONS: Final = 8
"""Maximum connections of one client."""


class _Sentinels(Sentinel):
    """redis-py's Sentinel with a lock: `discover_master` reorders its list, so that two threads could lose an entry."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def discover_master(self, service_name: str) -> tuple[str, int]:
        with self._lock:
            address: tuple[str, int] = super().discover_master(service_name)  # type: ignore[no-untyped-call]
            return address


def connect(address: Address) -> redis.Redis:
    """Return a client of `address`. It connects on first use."""
    options = _options() | {
        "socket_timeout": READ_SECONDS,
        "socket_read_size": 1 << 20,  # 12.6 MB in 8 values: 4 ms instead of 9
        "max_connections": CONNECTIONS,
        "parser_class": BoundedParser,
        "decode_responses": False,
        "db": address.db,
        **address.options,
    }
    if address.scheme == "redis+sentinel":
        return _at_sentinels(address, options)
    if address.scheme == "unix":
        pool = ConnectionPool(connection_class=UnixDomainSocketConnection, path=address.path, **options)
    else:
        [(host, port)] = address.nodes
        kind = SSLConnection if address.scheme == "rediss" else Connection
        pool = ConnectionPool(connection_class=kind, host=host, port=port, **options)
    return redis.Redis.from_pool(pool)


def drop_idle(client: redis.Redis) -> None:
    """Close the connections that no thread uses, because their server is no longer the master."""
    client.connection_pool.disconnect(inuse_connections=False)


def _options() -> dict[str, Any]:
    return {
        "protocol": 2,  # no HELLO, which older servers and proxies do not know
        "socket_connect_timeout": CONNECT_SECONDS,
        "retry": Retry(NoBackoff(), 1),  # once, on a new connection: the server may have restarted
    }


def _at_sentinels(address: Address, options: dict[str, Any]) -> redis.Redis:
    """Return a client of the master. Each new connection asks the Sentinels for the master's address."""
    sentinels = _options() | {"socket_timeout": CONNECT_SECONDS}
    for name in ("username", "password"):
        if (secret := options.pop(f"sentinel_{name}", None)) is not None:
            sentinels[name] = secret
    finder = _Sentinels(list(address.nodes), sentinel_kwargs=sentinels, **options)
    client: redis.Redis = finder.master_for(address.service)  # type: ignore[no-untyped-call]
    return client
