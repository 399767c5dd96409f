"""A request that runs in an engine."""

from __future__ import annotations

from dataclasses import dataclass

from cache import Chain
from engine.messages import Generate
from engine.sampler import Sampler
from engine.scheduler import Sequence


@dataclass(eq=False)
class Run:
    """A request that runs here."""

    message: Generate
    sequence: Sequence
    sampler: Sampler
    chain: Chain | None = None
    """The blocks of what is in its cells, once it takes part; None when they are not to be stored."""
    scheduled: bool = False
    """Whether it takes part in steps: not while its blocks are fetched, or while it waits for another's."""
    fetched: int = 0
    """Tokens that came from the store."""
    leader: Run | None = None
    """Who computes what it has in common with it; it waits for that."""
    awaited: int = 0
    """Tokens that it will take from its leader."""
