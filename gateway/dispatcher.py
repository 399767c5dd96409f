"""Which engine takes the next request: the one that holds its conversation's KV, else the one with the least to do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine import EngineProcess, State

RUNNING: Final = 16
"""Requests that run in one engine at most: as wide as a decode batch gets."""
HOMES: Final = 4096
"""Responses whose engine is remembered; an engine holds far fewer conversations."""


@dataclass(frozen=True)
class Demand:
    """What a request needs: KV cells at most, and the response that it continues."""

    cells: int
    previous: str | None = None


@dataclass(frozen=True)
class Placement:
    """A place in an engine; its cells are set aside until it is released."""

    engine: EngineProcess
    cells: int


class Dispatcher:
    """Sets cells aside, so that an engine is never sent what it cannot hold."""

    def __init__(self, engines: Sequence[EngineProcess]) -> None:
        """Dispatch to `engines`, none of which runs anything yet."""
        self._engines = tuple(engines)
        self._placed: dict[EngineProcess, list[Placement]] = {engine: [] for engine in engines}
        self._homes: OrderedDict[str, EngineProcess] = OrderedDict()

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return sum(map(len, self._placed.values()))

    def place(self, demand: Demand) -> Placement | None:
        """A place for the request, or None as long as no engine has room."""
        able = [engine for engine in self._engines if self._fits(engine, demand)]
        if not able:
            return None
        home = self._homes.get(demand.previous or "")
        engine = home if home in able else min(able, key=self._burden)
        assert engine is not None  # noqa: S101 - for the type checker: `able` holds engines only
        placement = Placement(engine, demand.cells)
        self._placed[engine].append(placement)
        return placement

    def release(self, placement: Placement) -> None:
        """The request ended; its cells are free for the next."""
        placed = self._placed[placement.engine]
        del placed[next(i for i, other in enumerate(placed) if other is placement)]

    def settle(self, response: str, engine: EngineProcess) -> None:
        """Remember that `engine` holds this response's KV."""
        self._homes[response] = engine
        self._homes.move_to_end(response)
        if len(self._homes) > HOMES:
            self._homes.popitem(last=False)

    def _fits(self, engine: EngineProcess, demand: Demand) -> bool:
        placed = self._placed[engine]
        if engine.state is State.FAILED or len(placed) >= RUNNING:
            return False
        return sum(placement.cells for placement in placed) + demand.cells <= engine.cells

    def _burden(self, engine: EngineProcess) -> tuple[int, bool]:
        """Few requests first; among equals one that is loaded already."""
        return len(self._placed[engine]), engine.state is State.STOPPED
