"""A store in one Redis server, shared by gateways on several machines.

Every value has a time to live, so that `volatile-*` policies can evict it. Chains are renewed leaf first with times to
live that grow by APART towards the root, so that `volatile-ttl` evicts leaves before their parents. Under other
policies a parent may be evicted first, which shortens the hit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from redis.exceptions import RedisError

from cache.address import parse_address
from cache.errors import StoreError
from cache.redis_connection import connect, drop_idle
from cache.redis_errors import explained, has_lost_role

T = TypeVar("T")

_REVISION: Final = b"revision"
_KEY: Final = b"samovar:key"
_OTHER_SLOT: Final = b"samovar:users"
"""A key in another hash slot than `_KEY`: a Redis Cluster rejects a command that reads both."""
APART: Final = 1000
"""Milliseconds by which a parent outlives its child: more than a pipeline takes, since each time to live starts when
its command runs."""


class RedisStore:
    """See Store. Connects on first use."""

    backend = "redis"

    def __init__(self, url: str, *, ttl: float, names: str = "block") -> None:
        """Use the Redis at `url`. Values expire after `ttl` seconds; their keys begin with `samovar:` and `names`."""
        self.url = url
        self._ttl = int(ttl * 1000)
        self._prefix = f"samovar:{names}:".encode()
        self._address = parse_address(url)
        self._client = connect(self._address)

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """See Store."""
        if not ids:
            return []
        return self._do(lambda: self._mget(self._keys(ids)))

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """See Store."""
        commands = [("EXISTS", key) for key in self._keys(ids)]
        return self._do(lambda: [bool(n) for n in self._pipeline(commands, int)])

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """See Store."""
        keys = self._keys([id_ for id_, _ in pairs])
        sets = [
            ("SET", key, value, "PX", self._ttl + i * APART)
            for i, (key, (_, value)) in enumerate(zip(reversed(keys), reversed(pairs), strict=True))
        ]
        # The root first: if the server becomes full in between, the blocks stored so far are usable.
        self._do(lambda: self._pipeline(sets[::-1], bytes))
        renewals = [("PEXPIRE", key, self._ttl + i * APART) for i, key in enumerate(self._keys(renew))]
        self._do(lambda: self._pipeline(renewals, int))

    def delete(self, ids: Sequence[bytes]) -> None:
        """See Store."""
        if ids:
            self._do(lambda: self._client.unlink(*self._keys(ids)))

    def sweep(self) -> None:
        """Do nothing: Redis deletes expired values itself."""

    def about(self, section: str) -> dict[str, Any]:
        """Return a section of the server's INFO."""
        answer = self._do(lambda: self._client.info(section))
        if not isinstance(answer, dict):
            raise StoreError("cache: the server is not a Redis")
        return answer

    def revision(self, table: str) -> int | None:
        """Return how often a table was written, or None if it does not exist."""
        revision = self._do(lambda: self._from_master("HGET", _table(table), _REVISION))
        [revision] = _expected([revision], 1, (bytes, type(None)))
        return None if revision is None else int(revision)

    def read_table(self, table: str) -> dict[bytes, bytes]:
        """Return all values of a table. They do not expire."""
        answer: Any = self._do(lambda: self._client.hgetall(_table(table)))
        if not isinstance(answer, dict):
            raise StoreError("cache: the server is not a Redis")
        fields = _expected([*answer], len(answer), (bytes,))
        return {id_: answer[id_] for id_ in fields if id_ != _REVISION}

    def read_fields(self, table: str, ids: Sequence[bytes]) -> list[bytes | None]:
        """Return some values of a table; None for those that it does not have."""
        found = self._do(lambda: self._from_master("HMGET", _table(table), *ids))
        return _expected(found, len(ids), (bytes, type(None)))

    def drop_table(self, table: str) -> None:
        """Delete a table."""
        self._do(lambda: self._client.unlink(_table(table)))

    def write_table(self, table: str, values: Mapping[bytes, bytes], *, drop: Sequence[bytes] = ()) -> int:
        """Store and delete values of a table and return its new revision.

        The revision rises last, so that a gateway that reads in between reads again.
        """
        commands: list[tuple[Any, ...]] = [("HSET", _table(table), id_, value) for id_, value in values.items()]
        commands += [("HDEL", _table(table), id_) for id_ in drop]
        commands += [("HINCRBY", _table(table), _REVISION, 1)]
        return self._do(lambda: self._pipeline(commands, int))[-1]

    def append(self, log: str, value: bytes, *, most: int) -> str:
        """Append a value to a log of about `most` values and return its position. Positions rise."""
        command = ("XADD", _table(log), "MAXLEN", "~", most, "*", b"v", value)
        [position] = self._do(lambda: self._pipeline([command], bytes))
        return position.decode()

    def newest(self, log: str) -> str:
        """Return the position of a log's newest value; empty if the log is."""
        answer = self._do(lambda: self._from_master("XREVRANGE", _table(log), "+", "-", "COUNT", 1))
        return str(answer[0][0].decode()) if answer else ""

    def has(self, log: str, position: str) -> bool:
        """Return whether a log holds a value at `position`."""
        return bool(self._do(lambda: self._from_master("XRANGE", _table(log), position, position)))

    def entries(self, log: str, after: str, *, most: int) -> list[tuple[str, bytes]]:
        """Return up to `most` values of a log after a position (empty: from the beginning), with their positions."""
        command = ("XREAD", "COUNT", most, "STREAMS", _table(log), after or "0")
        answer = self._do(lambda: self._from_master(*command)) or []
        return [(str(at.decode()), fields[b"v"]) for _, found in answer for at, fields in found]

    def read_mark(self) -> str | None:
        """See Store. Raises UnsupportedStoreError if the server is a Redis Cluster."""
        mark, _ = self._do(lambda: self._mget([_KEY, _OTHER_SLOT]))
        return None if mark is None else mark.decode(errors="replace")

    def write_mark(self, fingerprint: str) -> None:
        """See Store. The fingerprint has no expiry, so that it outlives the values."""
        self._do(lambda: self._client.set(_KEY, fingerprint))

    def ping(self) -> None:
        """See Store."""
        if self._do(lambda: self._from_master("PING")) not in (True, b"PONG"):
            raise StoreError("cache: the server is not a Redis")

    def interrupt(self) -> None:
        """See Store. Closes all connections, so that threads waiting on one get an error."""
        self._client.connection_pool.disconnect(inuse_connections=True)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _keys(self, ids: Sequence[bytes]) -> list[bytes]:
        return [self._prefix + id_.hex().encode() for id_ in ids]

    def _do(self, work: Callable[[], T]) -> T:
        """Run `work`; if the server is no longer the master, run it again on new connections. Raises StoreError."""
        with explained(self._address):
            try:
                return work()
            except RedisError as error:
                if not has_lost_role(error):
                    raise
                drop_idle(self._client)
                return work()

    def _mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return _expected(self._client.mget(keys), len(keys), (bytes, type(None)))

    def _from_master(self, *command: Any) -> Any:
        """Return the reply to a read `command`; after a failover, that of the new master.

        A replica answers reads, so a reader would not notice otherwise that its connection leads to the old master.
        """
        answer, role = self._replies([command, ("ROLE",)])
        if isinstance(role, list) and role[:1] == [b"slave"]:
            drop_idle(self._client)
            [answer] = self._replies([command])  # even if it is still a replica: its data can be read
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def _pipeline(self, commands: Sequence[tuple[Any, ...]], kind: type[T]) -> list[T]:
        """Run all commands in one round trip and return their replies. Raises the first error among the replies."""
        answers = self._replies(commands)
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return _expected(answers, len(commands), (bool, kind))

    def _replies(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run all commands in one round trip and return their replies, errors included."""
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        # An error raised by `execute` would quote the command, and with it the value.
        answers = pipeline.execute(raise_on_error=False)
        if len(answers) != len(commands):
            raise StoreError("cache: the server is not a Redis")
        return answers


def _table(name: str) -> bytes:
    return f"samovar:{name}".encode()


def _expected(answer: Any, count: int, kinds: tuple[type, ...]) -> list[Any]:
    """Return `answer` if it is a list of `count` values of `kinds`. Raises StoreError: any program may listen there."""
    if not isinstance(answer, list) or len(answer) != count or not all(isinstance(one, kinds) for one in answer):
        raise StoreError("cache: the server is not a Redis")
    return answer
