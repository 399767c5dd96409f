"""The queue in front of the engines: bounded, first come first served, with positions and a time-out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from gateway.errors import QueueFullError, QueueTimeoutError

R = TypeVar("R")
P = TypeVar("P")


class Admission(Generic[R, P]):
    """Lets requests wait until `place` finds one a place, which is the dispatcher's to say.

    `limit` requests may wait, each for `timeout` seconds.
    """

    def __init__(
        self, place: Callable[[R], P | None], give_back: Callable[[P], None], *, limit: int, timeout: float
    ) -> None:
        """`give_back` takes the place of one who left in the moment of getting it."""
        self._place = place
        self._give_back = give_back
        self._limit = limit
        self._timeout = timeout
        self._waiting: dict[asyncio.Future[P], tuple[R, Callable[[int], None]]] = {}

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def enter(self, request: R, on_position: Callable[[int], None]) -> P:
        """Wait for a place; `on_position` hears 1 for the next in line, and again as that changes.

        Cancelled, it leaves the queue. Raises QueueFullError or QueueTimeoutError.
        """
        if not self._waiting:
            place = self._place(request)
            if place is not None:
                return place
        if len(self._waiting) >= self._limit:
            raise QueueFullError(f"{self._limit} requests wait already; try again in a while")
        turn: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = (request, on_position)
        on_position(len(self._waiting))
        try:
            async with asyncio.timeout(self._timeout):
                return await turn
        except TimeoutError as error:
            if turn.done() and not turn.cancelled():
                return turn.result()  # the place came in the same moment: it must not be lost
            raise QueueTimeoutError(f"no engine was free within {self._timeout:g} s") from error
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(turn.result())
                self.pump()
            raise
        finally:
            if self._waiting.pop(turn, None) is not None:
                self.pump()

    def pump(self) -> None:
        """Give places that became free, in order, and tell the rest how far they moved. The head is never overtaken."""
        moved = False
        for turn, (request, _) in list(self._waiting.items()):
            if turn.cancelled():
                continue
            place = self._place(request)
            if place is None:
                break
            del self._waiting[turn]
            turn.set_result(place)
            moved = True
        if moved or self._waiting:
            for position, (_, on_position) in enumerate(self._waiting.values(), 1):
                on_position(position)
