"""Which requests of a connection may begin: first in, first out within a lane, lanes side by side."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from gateway.errors import InvalidRequestError, QueueFullError

ACTIVE: Final = 16
"""Responses of one connection that run, or wait for an engine, at a time."""
NAMED: Final = 32
"""Lanes with a name that one connection may have in use at a time."""
PENDING: Final = 64
"""Requests of one connection that may wait for their lane."""

T = TypeVar("T")


class Lanes(Generic[T]):
    """Requests in their lanes; None is the lane without a name."""

    def __init__(self, *, active: int = ACTIVE, named: int = NAMED, pending: int = PENDING) -> None:
        """Begin with no request."""
        self._most = (active, named, pending)
        self._active: set[str | None] = set()
        self._pending: list[tuple[str | None, T]] = []  # short; an empty deque takes 760 bytes of an idle connection

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._active and not self._pending

    def add(self, lane: str | None, request: T) -> None:
        """Line a request up. Raises InvalidRequestError for a lane too many, QueueFullError for a request too many."""
        _, named, pending = self._most
        names = {name for name, _ in self._pending} | self._active | {lane}
        if lane is not None and len(names - {None}) > named:
            raise InvalidRequestError(f"a connection has at most {named} lanes in use at a time", param="stream_id")
        if len(self._pending) >= pending:
            raise QueueFullError(f"{pending} requests of this connection wait already")
        self._pending.append((lane, request))

    def begin(self) -> tuple[str | None, T] | None:
        """The next request that may begin now, by arrival; its lane is taken until `end`. None when all must wait."""
        if len(self._active) >= self._most[0]:
            return None
        for at, (lane, request) in enumerate(self._pending):
            if lane not in self._active:
                del self._pending[at]
                self._active.add(lane)
                return lane, request
        return None

    def end(self, lane: str | None) -> None:
        """The lane's request has ended: the next of that lane may begin."""
        self._active.remove(lane)

    def clear(self) -> list[tuple[str | None, T]]:
        """Give up all that wait."""
        waiting = list(self._pending)
        self._pending.clear()
        return waiting
