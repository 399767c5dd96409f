"""A request that runs in an engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from engine.kv.manager import common_prefix
from engine.messages import Generate
from engine.sampler import Sampler
from engine.scheduler import Sequence

MIN_AWAIT: Final = 64
"""Minimum tokens that waiting for another run must save: computing fewer is as fast as waiting."""


@dataclass(eq=False)
class Run:
    """A request with its sequence and sampler."""

    message: Generate
    sequence: Sequence
    sampler: Sampler
    scheduled: bool = False
    """Whether it takes part in steps: not while its blocks are fetched, nor while it waits for its leader."""
    fetched: int = 0
    """Tokens that came from the store."""
    leader: Run | None = None
    """The run that computes a prefix common to both. This run waits for that prefix."""
    awaited: int = 0
    """Length of that prefix in tokens."""

    def choose_leader(self, runs: Iterable[Run]) -> None:
        """Set `leader` to the run that computes, or has computed, the longest prefix common with this one.

        It is None if no prefix saves MIN_AWAIT tokens.
        """
        tokens, scope, public = self.message.tokens, self.message.scope, self.message.public
        self.leader, self.awaited = None, self.sequence.computed + MIN_AWAIT
        for other in runs:
            within = len(tokens) - 1 if other.message.scope == scope else min(public, other.message.public)
            most = min(within, other.sequence.prompt)
            if other.scheduled and most >= self.awaited:
                common = min(most, common_prefix(other.sequence.tokens, tokens))
                if common >= self.awaited:
                    self.leader, self.awaited = other, common
