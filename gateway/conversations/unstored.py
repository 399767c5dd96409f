"""What `store: false` leaves behind for as long as its connection lasts, over HTTP its response."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from engine import EngineProcess
from gateway.conversations.turns import Turn

KEPT: Final = 64
"""Turns that one connection can still continue; the oldest go."""


class Unstored:
    """One connection's turns and KV cells that nobody else may see, and that go with it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._turns: OrderedDict[str, tuple[Turn, list[int] | None]] = OrderedDict()
        self._cells: dict[EngineProcess, list[int]] = {}
        self._closed = False

    def get(self, response: str) -> tuple[Turn, list[int] | None] | None:
        """A turn and its token ids."""
        return self._turns.get(response)

    def keep(self, turn: Turn, ids: list[int] | None) -> None:
        """A turn ended: it can be continued here."""
        if not self._closed:
            self._turns[turn.id] = (turn, ids)
            if len(self._turns) > KEPT:
                self._turns.popitem(last=False)

    def left(self, engine: EngineProcess, request: int) -> None:
        """A request left its cells in an engine."""
        if self._closed:
            engine.forget([request])
        else:
            self._cells.setdefault(engine, []).append(request)

    def close(self) -> None:
        """Forget everything, here and in the engines, and whatever still comes."""
        self._closed = True
        self._turns.clear()
        for engine, requests in self._cells.items():
            engine.forget(requests)
        self._cells.clear()
