"""Limits the share of the event loop's time that reading large messages takes: work in turns, with a rest after each.

A turn here is one piece of work on the event loop, not a turn of a conversation.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

REST_RATIO: Final = 4.0
"""Seconds of rest per second of work, so that large messages take at most a fifth of the loop's time."""
PIECE: Final = 1 << 14
"""Bytes of a read up to which its work is not measured: nearly all messages are shorter."""
LEAST_REST: Final = 0.001
"""Seconds: a shorter rest is added to the next one, since the loop's timers count milliseconds."""


class Pacer:
    """Gives turns, one at a time: owners take turns, and each turn is followed by a rest in proportion to its work.

    The work is measured, so a slow or busy machine rests longer. A turn is at most one piece of work: a part of a
    message that has arrived, or the decoding of one message.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Create a pacer without waiting turns; `clock` returns seconds."""
        self._clock = clock
        self._waiting: OrderedDict[str, deque[Callable[[], None]]] = OrderedDict()
        self._free = 0.0
        """When the next turn may start, in seconds of the clock."""
        self._scheduled = False

    def call(self, owner: str, turn: Callable[[], None]) -> None:
        """Call `turn` when it is the owner's turn; `turn` must not raise."""
        self._waiting.setdefault(owner, deque()).append(turn)
        self._schedule()

    async def turn(self, owner: str) -> None:
        """Wait for a turn of `owner`; the work must follow immediately, within `work`."""
        ready = asyncio.get_running_loop().create_future()
        self.call(owner, lambda: None if ready.done() else ready.set_result(None))
        await ready

    @contextmanager
    def work(self) -> Iterator[None]:
        """Measure the work of the block; the next turn starts after a rest."""
        began = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            self._free = max(now, self._free) + REST_RATIO * (now - began)

    def _schedule(self) -> None:
        if self._scheduled or not self._waiting:
            return
        self._scheduled = True
        rest = self._free - self._clock()
        loop = asyncio.get_running_loop()
        if rest < LEAST_REST:
            loop.call_soon(self._next)
        else:
            loop.call_later(rest, self._next)

    def _next(self) -> None:
        """Start the next turn, unless work of the meantime has extended the rest.

        The work of a turn runs before this is called again: a future that `turn` waits for resumes its task in the
        loop's next iteration, and a socket that is read again is read in this one.
        """
        self._scheduled = False
        if self._free - self._clock() < LEAST_REST:
            owner, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[owner] = turns
            turn()
        self._schedule()
