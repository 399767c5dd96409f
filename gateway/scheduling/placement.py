"""The demand of a request (tokens and cells) and its placement (engine)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine import Engine

PREFILL: Final = 0.2
"""Cost of a prompt token in answer tokens: prompts are computed about five times faster
(docs/scheduling.md)."""


@dataclass(frozen=True)
class Demand:
    """The tokens that a request needs or, after its end, that it took."""

    prompt: int
    """Length of the prompt in tokens."""
    answer: int
    """Tokens of the answer; before it ends, the maximum."""
    known: int = 0
    """Prompt tokens that an engine has computed before."""
    previous: str | None = None
    """Id of the response whose KV the request continues, if known."""
    group: str | None = None
    """Name of the requests with this prompt, if there are several; one engine computes it for all."""
    stored: bool = False
    """Whether the request's KV is in the store, from which any engine can fetch it."""

    @property
    def cells(self) -> int:
        """Maximum KV cells."""
        return self.prompt + self.answer

    @property
    def new(self) -> int:
        """Prompt tokens to compute."""
        return self.prompt - self.known

    @property
    def tokens(self) -> int:
        """Number of tokens to compute, for rate limits."""
        return self.new + self.answer

    @property
    def cost(self) -> float:
        """Cost of computing them, in answer tokens."""
        return self.new * PREFILL + self.answer


@dataclass(frozen=True)
class Placement:
    """A request's assignment to an engine, where its cells are reserved. A request that moves gets another one."""

    number: int
    """Number of the request: the same wherever it moves."""
    engine: Engine
    demand: Demand
