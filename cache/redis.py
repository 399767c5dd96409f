"""A store in one Redis server, shared by gateways on several machines.

Every value has a time to live, so that `volatile-*` policies can make room, and is renewed leaf first, a millisecond
apart, so that `volatile-ttl` takes leaves before their parents. Under other policies a parent may go first, and the
hit is shorter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from cache.errors import StoreError, StoreFullError

T = TypeVar("T")

CONNECT_SECONDS: Final = 0.25
READ_SECONDS: Final = 0.5
"""Longest silence within an answer; the whole call is bounded by Guarded."""
CONNECTIONS: Final = 8
_TAKES_NOTHING: Final = (OutOfMemoryError, ReadOnlyError, NoPermissionError)
_TAKES_NOTHING_CODES: Final = ("MISCONF", "NOREPLICAS")
"""The other errors by which a Redis that can be read refuses to be written."""


_REVISION: Final = b"revision"
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
        self._client = redis.Redis.from_url(
            url,
            protocol=2,  # no HELLO: older servers and proxies answer too
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=READ_SECONDS,
            socket_read_size=1 << 20,  # 12.6 MB in 8 values: 4 ms instead of 9
            retry=Retry(NoBackoff(), 1),  # once, on a fresh connection: the server may have restarted since
            max_connections=CONNECTIONS,
            decode_responses=False,
        )

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """The values, None where there is none."""
        if not ids:
            return []
        with _told():
            return _expected(self._client.mget(self._keys(ids)), len(ids), (bytes, type(None)))

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """Which ids have a value."""
        with _told():
            return [bool(n) for n in self._pipeline([("EXISTS", key) for key in self._keys(ids)], int)]

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """Store values and renew a chain, leaf first. Raises StoreFullError when there is no room."""
        keys = self._keys([id_ for id_, _ in pairs])
        sets = [
            ("SET", key, value, "PX", self._ttl + i * APART)
            for i, (key, (_, value)) in enumerate(zip(reversed(keys), reversed(pairs), strict=True))
        ]
        with _told():
            # The root first: what a server that fills up in the middle has taken is then of use.
            self._pipeline(sets[::-1], bytes)
        self.touch(renew)

    def touch(self, ids: Sequence[bytes]) -> None:
        """Renew a chain, leaf first."""
        with _told():
            self._pipeline([("PEXPIRE", key, self._ttl + i * APART) for i, key in enumerate(self._keys(ids))], int)

    def delete(self, ids: Sequence[bytes]) -> None:
        """Drop values."""
        if ids:
            with _told():
                self._client.unlink(*self._keys(ids))

    def sweep(self) -> None:
        """Redis drops what is past its time by itself."""

    def size(self) -> int:
        """Bytes that the server's data takes, others' included."""
        return int(self.about("memory").get("used_memory", 0))

    def about(self, section: str) -> dict[str, Any]:
        """What the server tells of itself."""
        with _told():
            answer = self._client.info(section)
            if not isinstance(answer, dict):
                raise StoreError("cache: what answers is no Redis")
            return answer

    def revision(self, table: str) -> int | None:
        """How often a table was written; None when there is none."""
        with _told():
            [revision] = _expected([self._client.hget(_table(table), _REVISION)], 1, (bytes, type(None)))
            return None if revision is None else int(revision)

    def read_table(self, table: str) -> dict[bytes, bytes]:
        """Values that do not grow old, beside the others: all of a table."""
        with _told():
            answer: Any = self._client.hgetall(_table(table))
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
        with _told():
            return self._pipeline([*commands, ("HINCRBY", _table(table), _REVISION, 1)], int)[-1]

    def append(self, log: str, value: bytes, *, most: int) -> str:
        """Append a value to a log of about `most` values, and return its position: later ones have larger ones."""
        with _told():
            command = ("XADD", _table(log), "MAXLEN", "~", most, "*", b"v", value)
            [position] = _expected([self._client.execute_command(*command)], 1, (bytes,))  # type: ignore[no-untyped-call]
            return str(position.decode())

    def newest(self, log: str) -> str:
        """Return the position of a log's newest value; empty when there is none."""
        with _told():
            answer: Any = self._client.xrevrange(_table(log), count=1)
            return str(answer[0][0].decode()) if answer else ""

    def entries(self, log: str, after: str, *, most: int) -> list[tuple[str, bytes]]:
        """Return the values of a log behind a position (empty: from the beginning), with their positions."""
        with _told():
            answer: Any = self._client.xread({_table(log): after or "0"}, count=most)
            return [(str(at.decode()), fields[b"v"]) for _, found in answer for at, fields in found]

    def read_mark(self) -> str | None:
        """The fingerprint of the key that the values were sealed under."""
        with _told():
            [mark] = _expected([self._client.get(b"samovar:key")], 1, (bytes, type(None)))
            return None if mark is None else mark.decode(errors="replace")

    def write_mark(self, fingerprint: str) -> None:
        """Say it; it stays longer than anything that it is said of."""
        with _told():
            self._client.set(b"samovar:key", fingerprint)

    def ping(self) -> None:
        """Raise StoreError unless it answers."""
        with _told():
            if self._client.ping() is not True:
                raise StoreError("cache: what answers is no Redis")

    def interrupt(self) -> None:
        """Cut all connections: who waits on one gets an error."""
        self._client.connection_pool.disconnect(inuse_connections=True)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _keys(self, ids: Sequence[bytes]) -> list[bytes]:
        return [self._prefix + id_.hex().encode() for id_ in ids]

    def _pipeline(self, commands: Sequence[tuple[Any, ...]], kind: type[T]) -> list[T]:
        """All commands in one round trip. Their first error is raised when all have been answered."""
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        # An error raised by `execute` would quote the command, and so the value.
        answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return _expected(answers, len(commands), (bool, kind))


def _table(name: str) -> bytes:
    return f"samovar:{name}".encode()


def _expected(answer: Any, count: int, kinds: tuple[type, ...]) -> list[Any]:
    """`answer`, if it is a list of so many values of these types: whatever sits at that port may have sent it."""
    if not isinstance(answer, list) or len(answer) != count or not all(isinstance(one, kinds) for one in answer):
        raise StoreError("cache: what answers is no Redis")
    return answer


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns the library's errors into this room's; none of them shows a password."""
    try:
        yield
    except ResponseError as error:
        full = isinstance(error, _TAKES_NOTHING) or str(error).startswith(_TAKES_NOTHING_CODES)
        raise (StoreFullError if full else StoreError)(f"cache: Redis refuses: {error}") from error
    except RedisTimeoutError as error:
        raise StoreError("cache: Redis does not answer in time") from error
    except RedisConnectionError as error:
        raise StoreError(f"cache: Redis can't be reached: {error}") from error
    except (RedisError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        # Garbage, or a connection that `interrupt` cut, can fail anywhere in the parser and in what reads its output.
        raise StoreError(f"cache: what answers is no Redis: {type(error).__name__}") from error
