"""The lanes of a connection: requests are first in, first out within a lane, and lanes run in parallel."""

from __future__ import annotations

from collections import Counter
from typing import Final, Generic, TypeVar

from gateway.errors import InvalidRequestError, QueueFullError

ACTIVE: Final = 16
"""Maximum responses of one connection that run or wait for an engine."""
NAMED: Final = 32
"""Maximum named lanes that one connection may use at a time."""
PENDING: Final = 64
"""Maximum requests of one connection that wait for their lane."""
CONNECTION_BYTES: Final = 4 << 20
"""Maximum bytes of these waiting requests, as received."""
OWNER_BYTES: Final = 16 << 20
"""The same for all connections of one user, or without keys of one client address."""
GATEWAY_BYTES: Final = 64 << 20
"""The same for all connections of the gateway."""

T = TypeVar("T")


class Backlog:
    """Bytes of the requests that wait for their lanes, over all connections."""

    def __init__(self, *, owner: int = OWNER_BYTES, gateway: int = GATEWAY_BYTES) -> None:
        """`owner` is the limit in bytes of each owner, `gateway` that of all together."""
        self._most = (owner, gateway)
        self._held: Counter[str] = Counter()

    def add(self, owner: str, size: int) -> bool:
        """Add `size` bytes of `owner`; return False and add nothing if a limit would be exceeded."""
        most, all_most = self._most
        if self._held[owner] + size > most or self._held.total() + size > all_most:
            return False
        self._held[owner] += size
        return True

    def remove(self, owner: str, size: int) -> None:
        """Subtract `size` bytes of `owner`."""
        self._held[owner] -= size
        if not self._held[owner]:
            del self._held[owner]


class Lanes(Generic[T]):
    """The requests of one connection by lane; None is the unnamed lane."""

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
        """Waiting requests count in `backlog` under `owner`."""
        self._most = (active, named, pending, size)
        self._backlog = backlog or Backlog()
        self._owner = owner
        self._active: set[str | None] = set()
        # Lane, request and counted bytes. A list, since an empty deque takes 760 bytes per idle connection.
        self._pending: list[tuple[str | None, T, int]] = []
        self._size = 0

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._active and not self._pending

    @property
    def in_use(self) -> set[str | None]:
        """The lanes with a request that runs or waits."""
        return self._active.union(lane for lane, _, _ in self._pending)

    def add(self, lane: str | None, request: T, size: int = 0) -> None:
        """Queue a request of `size` bytes. Raises InvalidRequestError for too many lanes, else QueueFullError.

        A request that can start immediately is not subject to the byte limits.
        """
        active, named, pending, most = self._most
        waiting = {name for name, _, _ in self._pending}
        if lane is not None and len((waiting | self._active | {lane}) - {None}) > named:
            raise InvalidRequestError(f"a connection has at most {named} lanes in use at a time", param="stream_id")
        if len(self._pending) >= pending:
            raise QueueFullError(f"{pending} requests of this connection are waiting; retry when one has ended")
        if lane not in waiting and lane not in self._active and len(self._active) < active:
            size = 0
        elif self._size + size > most:
            raise QueueFullError(
                f"the waiting requests of this connection would exceed {most} bytes; retry when one has ended"
            )
        if size and not self._backlog.add(self._owner, size):
            raise QueueFullError("too many bytes of requests are waiting; retry when others have ended")
        self._size += size
        self._pending.append((lane, request, size))

    def begin(self) -> tuple[str | None, T] | None:
        """Return the oldest request that may start, and occupy its lane until `end`; None if all must wait."""
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
        """Free the lane after its request has ended, so that its next request may start."""
        self._active.remove(lane)

    def clear(self) -> list[tuple[str | None, T]]:
        """Remove and return all waiting requests."""
        waiting = [(lane, request) for lane, request, _ in self._pending]
        self._pending.clear()
        self._free(self._size)
        return waiting

    def _free(self, size: int) -> None:
        self._size -= size
        if size:
            self._backlog.remove(self._owner, size)
