"""Which requests of a connection may begin: first in, first out within a lane, lanes side by side."""

from __future__ import annotations

from collections import Counter
from typing import Final, Generic, TypeVar

from gateway.errors import InvalidRequestError, QueueFullError

ACTIVE: Final = 16
"""Responses of one connection that run, or wait for an engine, at a time."""
NAMED: Final = 32
"""Lanes with a name that one connection may have in use at a time."""
PENDING: Final = 64
"""Requests of one connection that may wait for their lane."""
CONNECTION_BYTES: Final = 4 << 20
"""Bytes of all of them, as they were received."""
OWNER_BYTES: Final = 16 << 20
"""The same for all connections of one user, or without keys of one address."""
GATEWAY_BYTES: Final = 64 << 20
"""The same for all connections."""

T = TypeVar("T")


class Backlog:
    """Bytes of the requests that wait for their lanes, of all connections together."""

    def __init__(self, *, owner: int = OWNER_BYTES, gateway: int = GATEWAY_BYTES) -> None:
        """`owner` is the bound of each owner, `gateway` that of all."""
        self._most = (owner, gateway)
        self._held: Counter[str] = Counter()

    def add(self, owner: str, size: int) -> bool:
        """Count `size` bytes of `owner`; return False, and count nothing, if there is no room for them."""
        most, all_most = self._most
        if self._held[owner] + size > most or self._held.total() + size > all_most:
            return False
        self._held[owner] += size
        return True

    def remove(self, owner: str, size: int) -> None:
        """Count `size` bytes no longer."""
        self._held[owner] -= size
        if not self._held[owner]:
            del self._held[owner]


class Lanes(Generic[T]):
    """Requests in their lanes; None is the lane without a name."""

    def __init__(
        self,
        *,
        active: int = ACTIVE,
        named: int = NAMED,
        pending: int = PENDING,
        size: int = CONNECTION_BYTES,
        backlog: Backlog | None = None,
        owner: str = "",
    ) -> None:
        """Begin with no request; what waits here counts in `backlog` as `owner`'s."""
        self._most = (active, named, pending, size)
        self._backlog = backlog or Backlog()
        self._owner = owner
        self._active: set[str | None] = set()
        # Lane, request and bytes that are counted. Short; an empty deque takes 760 bytes of an idle connection.
        self._pending: list[tuple[str | None, T, int]] = []
        self._size = 0

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._active and not self._pending

    def add(self, lane: str | None, request: T, size: int = 0) -> None:
        """Line up a request of `size` bytes. Raises InvalidRequestError for a lane too many, QueueFullError otherwise.

        A request that need not wait always has room.
        """
        active, named, pending, most = self._most
        waiting = {name for name, _, _ in self._pending}
        if lane is not None and len((waiting | self._active | {lane}) - {None}) > named:
            raise InvalidRequestError(f"a connection has at most {named} lanes in use at a time", param="stream_id")
        if len(self._pending) >= pending:
            raise QueueFullError(f"{pending} requests of this connection wait already")
        if lane not in waiting and lane not in self._active and len(self._active) < active:
            size = 0
        elif self._size + size > most:
            raise QueueFullError(f"the requests of this connection that wait would be over {most} bytes")
        if size and not self._backlog.add(self._owner, size):
            raise QueueFullError("too many bytes of requests wait already; send this one when others have ended")
        self._size += size
        self._pending.append((lane, request, size))

    def begin(self) -> tuple[str | None, T] | None:
        """The next request that may begin now, by arrival; its lane is taken until `end`. None when all must wait."""
        if len(self._active) >= self._most[0]:
            return None
        for at, (lane, request, size) in enumerate(self._pending):
            if lane not in self._active:
                del self._pending[at]
                self._free(size)
                self._active.add(lane)
                return lane, request
        return None

    def end(self, lane: str | None) -> None:
        """The lane's request has ended: the next of that lane may begin."""
        self._active.remove(lane)

    def clear(self) -> list[tuple[str | None, T]]:
        """Remove all requests that wait, and return them."""
        waiting = [(lane, request) for lane, request, _ in self._pending]
        self._pending.clear()
        self._free(self._size)
        return waiting

    def _free(self, size: int) -> None:
        self._size -= size
        if size:
            self._backlog.remove(self._owner, size)
