"""Turns with `store: false`, held in memory until the connection (over HTTP: the response) ends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from engine import Engine
from gateway.conversations.turns import Turn

MAX_TURNS: Final = 64
"""Maximum turns that one connection can continue. The oldest are deleted."""


class Unstored:
    """One connection's unstored turns and their KV cells, which are deleted when it closes."""

    def __init__(self, forget: Callable[[Engine, list[int]], None]) -> None:
        """Start without turns. `forget` drops the cells of requests in an engine."""
        self._forget = forget
        self._turns: OrderedDict[str, tuple[Turn, list[int] | None]] = OrderedDict()
        self._cells: dict[Engine, list[int]] = {}
        self._closed = False

    def get(self, response: str) -> tuple[Turn, list[int] | None] | None:
        """Return a turn and its token ids, or None."""
        return self._turns.get(response)

    def add(self, turn: Turn, ids: list[int] | None) -> None:
        """Add an ended turn, so that this connection can continue it."""
        if not self._closed:
            self._turns[turn.id] = (turn, ids)
            if len(self._turns) > MAX_TURNS:
                self._turns.popitem(last=False)

    def remove(self, response: str) -> None:
        """Delete a turn, if there is one."""
        self._turns.pop(response, None)

    def add_cells(self, engine: Engine, request: int) -> None:
        """Record that `engine` holds the cells of an ended request."""
        if self._closed:
            self._forget(engine, [request])
        else:
            self._cells.setdefault(engine, []).append(request)

    def close(self) -> None:
        """Delete all turns and free their cells in the engines; later additions are deleted immediately."""
        self._closed = True
        self._turns.clear()
        for engine, requests in self._cells.items():
            self._forget(engine, requests)
        self._cells.clear()
