"""Connections to one Redis: at its address, or at the master that Sentinels name."""

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
READ_SECONDS: Final = 0.5
"""Longest silence within an answer; the whole call is bounded by CircuitBreaker."""
CONNECTIONS: Final = 8


class _Sentinels(Sentinel):
    """redis-py's, which reorders its list of Sentinels in `discover_master`: two threads at once could lose one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def discover_master(self, service_name: str) -> tuple[str, int]:
        with self._lock:
            address: tuple[str, int] = super().discover_master(service_name)  # type: ignore[no-untyped-call]
            return address


def connect(address: Address) -> redis.Redis:
    """Return a client of `address`, which connects when first used."""
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
    """Close the connections that no thread uses, as the server at the other end is no longer the one to ask."""
    client.connection_pool.disconnect(inuse_connections=False)


def _options() -> dict[str, Any]:
    return {
        "protocol": 2,  # no HELLO: older servers and proxies answer too
        "socket_connect_timeout": CONNECT_SECONDS,
        "retry": Retry(NoBackoff(), 1),  # once, on a fresh connection: the server may have restarted since
    }


def _at_sentinels(address: Address, options: dict[str, Any]) -> redis.Redis:
    """Return a client of the master: each new connection asks the Sentinels where it is."""
    sentinels = _options() | {"socket_timeout": CONNECT_SECONDS}
    for name in ("username", "password"):
        if (secret := options.pop(f"sentinel_{name}", None)) is not None:
            sentinels[name] = secret
    finder = _Sentinels(list(address.nodes), sentinel_kwargs=sentinels, **options)
    client: redis.Redis = finder.master_for(address.service)  # type: ignore[no-untyped-call]
    return client
