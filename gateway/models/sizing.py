"""Sizes that follow from the budget `memory`: the context, the memory of one engine, and its KV cells.

llama.cpp allocates and clears all cells when an engine loads. Cells that were never used are returned to the system
after that, but all of them must fit while the engine loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from engine import ANNEX_CELLS

SEQUENCES: Final = 32
"""Sequences of one engine, running and cached."""
OVERHEAD: Final = 250 << 20
"""Bytes of an engine besides weights and cells: interpreter, libraries, vocabulary, context buffers (measured)."""
LEAST_CONTEXT: Final = 4096
"""Default context in tokens if the memory allows no more."""
MOST_CONTEXT: Final = 16_384
"""Maximum default context in tokens: coding agents and chat front ends send prompts of 7 000 to 8 000 tokens."""
STEP: Final = 256
"""A context that the memory limits is a multiple of this number of tokens, to which llama.cpp rounds cells anyway."""
MOST_CONTEXTS: Final = 8
"""Maximum cells of an engine, in full contexts: cells are allocated when an engine loads, and idle ones slow steps."""
MOST_CELLS: Final = 32_768
"""Maximum cells of an engine beyond one context unless `engine_memory` is set, so that a long context does not multiply
memory and load time."""

Limit = Literal["context", "trained", "default", "memory", "engine_memory", "least"]
"""What a context follows from: the setting `context`, the model, MOST_CONTEXT, a memory setting, or LEAST_CONTEXT."""


@dataclass(frozen=True)
class ModelBytes:
    """The memory that a model takes, in bytes."""

    weights: int
    shared: bool
    """Whether all engines share one copy of the weights."""
    token: int
    """KV of one token; 0 for a recurrent model."""
    sequence: int
    """Recurrent state of one sequence."""

    def tokens(self, memory: int) -> int:
        """Return how many tokens an engine holds that has `memory` bytes, weights not counted."""
        return (memory - OVERHEAD - SEQUENCES * self.sequence) // self.token


@dataclass(frozen=True)
class Sizes:
    """The sizes of the engines."""

    context: int
    """Context length of a conversation in tokens."""
    limit: Limit
    """What the context follows from."""
    engine_memory: int
    """Maximum memory of one engine in bytes."""
    cells: int
    """KV cells of one engine."""


def sizes(
    model: ModelBytes,
    *,
    trained: int,
    engines: int,
    memory: int,
    engine_memory: int | None = None,
    context: int | None = None,
) -> Sizes:
    """Return the sizes for at most `engines` engines, which share `memory` bytes.

    `engine_memory` and `context` are the settings, None for `auto`; `trained` is the model's own context in tokens.
    """
    limit: Limit
    budget = memory // engines if engine_memory is None else engine_memory
    if context is None:
        weights = model.weights // engines if model.shared and engine_memory is None else model.weights
        source: Limit = "memory" if engine_memory is None else "engine_memory"
        context, limit = _default_context(model, trained, budget - weights, source)
    else:
        limit = "context" if context <= trained else "trained"
        context = min(context, trained)
    most = MOST_CONTEXTS * context
    if engine_memory is None:
        most = min(most, max(MOST_CELLS, context))
    if model.token:  # the state of a recurrent model does not grow with the number of tokens
        most = max(context, min(most, model.tokens(budget - model.weights) - ANNEX_CELLS))
    return Sizes(context, limit, budget, most)


def _default_context(model: ModelBytes, trained: int, memory: int, source: Limit) -> tuple[int, Limit]:
    """Return the lowest limit, but at least LEAST_CONTEXT if the model was trained for it.

    `memory` is what the setting `source` leaves of one engine's memory besides weights.
    """
    wanted: tuple[int, Limit] = (trained, "trained") if trained <= MOST_CONTEXT else (MOST_CONTEXT, "default")
    fitting = wanted[0] if model.token == 0 else model.tokens(memory) // STEP * STEP
    if fitting >= wanted[0] or wanted[0] <= LEAST_CONTEXT:
        return wanted
    return (fitting, source) if fitting >= LEAST_CONTEXT else (LEAST_CONTEXT, "least")
