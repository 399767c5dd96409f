"""A request that runs in an engine."""

from __future__ import annotations

from dataclasses import dataclass

from cache import Chain
from engine.messages import Generate
from engine.sampler import Sampler
from engine.scheduler import Sequence


@dataclass(eq=False)
class Run:
    """A request with its sequence and sampler."""

    message: Generate
    sequence: Sequence
    sampler: Sampler
    chain: Chain | None = None
    """The blocks of the tokens in its cells, once it is scheduled; None if they must not be stored."""
    scheduled: bool = False
    """Whether it takes part in steps: not while its blocks are fetched, nor while it waits for its leader."""
    fetched: int = 0
    """Tokens that came from the store."""
    leader: Run | None = None
    """The run that computes a prefix common to both. This run waits for that prefix."""
    awaited: int = 0
    """Length of that prefix in tokens."""
