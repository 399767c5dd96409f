"""The demand of a request (tokens and cells) and its placement (engine)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from engine import Engine

PREFILL: Final = 0.2
"""Cost of a prompt token in answer tokens: prompts are computed about five times faster
(docs/scheduling.md)."""

STRIDE: Final = 64
"""Tokens between two lengths at which prompts are compared."""


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
    prefixes: tuple[int, ...] = ()
    """Hashes of the prompt's first STRIDE tokens, of twice as many, and so on, with those who may share them."""

    @property
    def cells(self) -> int:
        """Maximum KV cells."""
        return self.prompt + self.answer

    def common(self, other: Demand) -> int:
        """Return how many tokens at the start of both prompts are equal and may be shared, in multiples of STRIDE."""
        pairs = zip(self.prefixes, other.prefixes, strict=False)
        return STRIDE * sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

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


def prefixes(tokens: Sequence[int], scope: str, public: int) -> tuple[int, ...]:
    """Return `Demand.prefixes` of a prompt. `scope` may share it, and everybody its first `public` tokens."""
    found: list[int] = []
    for end in range(STRIDE, len(tokens) + 1, STRIDE):
        sharers = "" if end <= public else scope
        found.append(hash((found[-1] if found else 0, sharers, *tokens[end - STRIDE : end])))
    return tuple(found)
