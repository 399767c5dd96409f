"""What the gateway sees of an engine."""

from __future__ import annotations

from typing import Protocol

from engine.process import State


class Engine(Protocol):
    """One engine of a pool, read only. `EnginePool` has the methods that act on it."""

    @property
    def name(self) -> str:
        """The engine's number, which never changes."""

    @property
    def state(self) -> State:
        """What the engine does now."""

    @property
    def loaded(self) -> bool:
        """Whether the engine can compute now."""

    @property
    def load_failed(self) -> bool:
        """Whether the model could not be loaded, so that a restart alone would not help."""

    @property
    def load_seconds(self) -> float:
        """Duration of the last load, of which:"""

    @property
    def weights_seconds(self) -> float:
        """Seconds for the model's weights."""

    @property
    def context_seconds(self) -> float:
        """Seconds for the context."""

    @property
    def threads(self) -> int:
        """Threads that the engine may be using."""

    @property
    def cells(self) -> int:
        """Number of KV cells."""

    @property
    def cells_used(self) -> int:
        """Number of KV cells in use."""
