"""A store in one Redis server, shared by gateways on several machines.

Every value has a time to live, so that `volatile-*` policies can make room, and is renewed leaf first, a millisecond
apart, so that `volatile-ttl` takes leaves before their parents. Under other policies a parent may go first, and the
hit is shorter.
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
"""A key that a Redis Cluster keeps in another slot than `_KEY`: to ask for both shows what it is."""
APART: Final = 1000
"""Milliseconds by which a parent outlives its child: more than a pipeline takes, as each counts from its command."""


class RedisStore:
    """See Store. Connects when first needed."""

    backend = "redis"

    def __init__(self, url: str, *, ttl: float, names: str = "block") -> None:
        """Keep values for `ttl` seconds under keys that begin with `samovar:` and `names`."""
        self.url = url
        self._ttl = int(ttl * 1000)
        self._prefix = f"samovar:{names}:".encode()
        self._address = parse_address(url)
        self._client = connect(self._address)

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """The values, None where there is none."""
        if not ids:
            return []
        return self._do(lambda: self._mget(self._keys(ids)))

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """Which ids have a value."""
        commands = [("EXISTS", key) for key in self._keys(ids)]
        return self._do(lambda: [bool(n) for n in self._pipeline(commands, int)])

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """Store values and renew a chain, leaf first. Raises StoreFullError when there is no room."""
        keys = self._keys([id_ for id_, _ in pairs])
        sets = [
            ("SET", key, value, "PX", self._ttl + i * APART)
            for i, (key, (_, value)) in enumerate(zip(reversed(keys), reversed(pairs), strict=True))
        ]
        # The root first: what a server that fills up in the middle has taken is then of use.
        self._do(lambda: self._pipeline(sets[::-1], bytes))
        self.touch(renew)

    def touch(self, ids: Sequence[bytes]) -> None:
        """Renew a chain, leaf first."""
        commands = [("PEXPIRE", key, self._ttl + i * APART) for i, key in enumerate(self._keys(ids))]
        self._do(lambda: self._pipeline(commands, int))

    def delete(self, ids: Sequence[bytes]) -> None:
        """Drop values."""
        if ids:
            self._do(lambda: self._client.unlink(*self._keys(ids)))

    def sweep(self) -> None:
        """Redis drops what is past its time by itself."""

    def size(self) -> int:
        """Bytes that the server's data takes, others' included."""
        return int(self.about("memory").get("used_memory", 0))

    def about(self, section: str) -> dict[str, Any]:
        """What the server tells of itself."""
        answer = self._do(lambda: self._client.info(section))
        if not isinstance(answer, dict):
            raise StoreError("cache: what answers is no Redis")
        return answer

    def revision(self, table: str) -> int | None:
        """How often a table was written; None when there is none."""
        revision = self._do(lambda: self._from_master("HGET", _table(table), _REVISION))
        [revision] = _expected([revision], 1, (bytes, type(None)))
        return None if revision is None else int(revision)

    def read_table(self, table: str) -> dict[bytes, bytes]:
        """Values that do not grow old, beside the others: all of a table."""
        answer: Any = self._do(lambda: self._client.hgetall(_table(table)))
        if not isinstance(answer, dict):
            raise StoreError("cache: what answers is no Redis")
        fields = _expected([*answer], len(answer), (bytes,))
        return {id_: answer[id_] for id_ in fields if id_ != _REVISION}

    def write_table(self, table: str, values: Mapping[bytes, bytes], *, drop: Sequence[bytes] = ()) -> int:
        """Put values there, drop others, and give the new revision.

        It rises last: who reads in between reads once more.
        """
        commands: list[tuple[Any, ...]] = [("HSET", _table(table), id_, value) for id_, value in values.items()]
        commands += [("HDEL", _table(table), id_) for id_ in drop]
        commands += [("HINCRBY", _table(table), _REVISION, 1)]
        return self._do(lambda: self._pipeline(commands, int))[-1]

    def append(self, log: str, value: bytes, *, most: int) -> str:
        """Append a value to a log of about `most` values, and return its position: later ones have larger ones."""
        command = ("XADD", _table(log), "MAXLEN", "~", most, "*", b"v", value)
        [position] = self._do(lambda: self._pipeline([command], bytes))
        return position.decode()

    def newest(self, log: str) -> str:
        """Return the position of a log's newest value; empty when there is none."""
        answer = self._do(lambda: self._from_master("XREVRANGE", _table(log), "+", "-", "COUNT", 1))
        return str(answer[0][0].decode()) if answer else ""

    def has(self, log: str, position: str) -> bool:
        """Return whether a log holds a value at `position`."""
        return bool(self._do(lambda: self._from_master("XRANGE", _table(log), position, position)))

    def entries(self, log: str, after: str, *, most: int) -> list[tuple[str, bytes]]:
        """Return the values of a log behind a position (empty: from the beginning), with their positions."""
        command = ("XREAD", "COUNT", most, "STREAMS", _table(log), after or "0")
        answer = self._do(lambda: self._from_master(*command)) or []
        return [(str(at.decode()), fields[b"v"]) for _, found in answer for at, fields in found]

    def read_mark(self) -> str | None:
        """The fingerprint of the key that the values were sealed under. Raises UnsupportedStoreError at a Cluster."""
        mark, _ = self._do(lambda: self._mget([_KEY, _OTHER_SLOT]))
        return None if mark is None else mark.decode(errors="replace")

    def write_mark(self, fingerprint: str) -> None:
        """Say it; it stays longer than anything that it is said of."""
        self._do(lambda: self._client.set(_KEY, fingerprint))

    def ping(self) -> None:
        """Raise StoreError unless it answers."""
        if self._do(lambda: self._from_master("PING")) not in (True, b"PONG"):
            raise StoreError("cache: what answers is no Redis")

    def interrupt(self) -> None:
        """Cut all connections: who waits on one gets an error."""
        self._client.connection_pool.disconnect(inuse_connections=True)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _keys(self, ids: Sequence[bytes]) -> list[bytes]:
        return [self._prefix + id_.hex().encode() for id_ in ids]

    def _do(self, work: Callable[[], T]) -> T:
        """Do `work`; where the server has lost its role, do it again on new connections. Raises StoreError."""
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
        """Return the answer to a reading `command`, after a failover that of the new master.

        A replica answers reads, so nothing else shows one who only reads that this connection leads to the old master.
        """
        answer, role = self._answers([command, ("ROLE",)])
        if isinstance(role, list) and role[:1] == [b"slave"]:
            drop_idle(self._client)
            [answer] = self._answers([command])  # also if it is a replica still: what it has can be read
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def _pipeline(self, commands: Sequence[tuple[Any, ...]], kind: type[T]) -> list[T]:
        """All commands in one round trip. Their first error is raised when all have been answered."""
        answers = self._answers(commands)
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return _expected(answers, len(commands), (bool, kind))

    def _answers(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """All answers and errors, in one round trip."""
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        # An error raised by `execute` would quote the command, and so the value.
        answers = pipeline.execute(raise_on_error=False)
        if len(answers) != len(commands):
            raise StoreError("cache: what answers is no Redis")
        return answers


def _table(name: str) -> bytes:
    return f"samovar:{name}".encode()


def _expected(answer: Any, count: int, kinds: tuple[type, ...]) -> list[Any]:
    """`answer`, if it is a list of so many values of these types: whatever sits at that port may have sent it."""
    if not isinstance(answer, list) or len(answer) != count or not all(isinstance(one, kinds) for one in answer):
        raise StoreError("cache: what answers is no Redis")
    return answer
