"""Reproducible requests: the model, the build of llama.cpp, the CPU and the request determine their text, nothing else.

Rounding in a step depends on the number of its rows, on its threads (decoding splits attention among them), and on
the order in which the cells of a sequence lie in the context. So a reproducible request has a context of its own, in
which it lies from cell 0 on, and is computed on one thread: its prompt in chunks that end at multiples of CHUNK tokens,
its answer in steps of one row. An answer whose engine died is computed again in the same steps. No prefix is reused,
and no KV is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from engine.candidates import Logits
from engine.runs import Run

CHUNK: Final = 32
"""Prompt tokens of a step. Other requests wait for it: with 32, 0.35 s on a slow core."""
ALIGNMENT: Final = 256
"""Cells of a context come in multiples of this: llama.cpp's own unit."""


class Cells(Protocol):
    """The methods of a context that reproducible requests need."""

    def decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Run a step."""

    def logits(self, index: int) -> Logits:
        """Return the logits of an entry of the last step."""

    def close(self) -> None:
        """Free the cells."""


class ReproducibleRuns:
    """The reproducible requests of an engine. One at a time is computed, in the order of arrival."""

    def __init__(self, make: Callable[[int], Cells]) -> None:
        """`make` creates a context for one sequence of so many cells, on one thread. It may raise ModelLoadError."""
        self._make = make
        self._runs: deque[Run] = deque()
        self._context: Cells | None = None
        """The context of the first request, once it has begun."""
        self._turn = False

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self._runs)

    def add(self, run: Run) -> None:
        """Add a request, whose sequence is empty."""
        self._runs.append(run)

    def remove(self, run: Run) -> None:
        """Remove an ended or aborted request."""
        if run is self._runs[0] and self._context is not None:
            self._context.close()
            self._context = None
        self._runs.remove(run)

    def takes_turn(self, *, others: bool) -> bool:
        """Whether the next step is one of these requests. They alternate with the steps of `others`, if any."""
        self._turn = bool(self._runs) and not (others and self._turn)
        return self._turn

    @property
    def first(self) -> Run:
        """The request that is computed now."""
        return self._runs[0]

    def begin(self) -> bool:
        """Create the context of the first request. Returns False if it exists already. Raises ModelLoadError."""
        if self._context is not None:
            return False
        self._context = self._make(-(-self.first.sequence.limit // ALIGNMENT) * ALIGNMENT)
        return True

    def step(self) -> tuple[int, Logits]:
        """Compute the next tokens of the first request, which has begun.

        Returns their number, and the logits of the last one if it is the last of its sequence. Raises DecodeError.
        """
        assert self._context is not None, "the request has begun"  # noqa: S101
        sequence = self.first.sequence
        start, end = sequence.computed, self._end()
        self._context.decode([(sequence.tokens[i], i, 0, i == end - 1) for i in range(start, end)])
        sequence.computed = end
        return end - start, self._context.logits(end - start - 1)

    def _end(self) -> int:
        """Return where the next step ends: within the prompt at a multiple of CHUNK, after it at the next token."""
        sequence = self.first.sequence
        prompt = sequence.prompt if sequence.answered is None else sequence.answered
        if sequence.computed >= prompt:
            return sequence.computed + 1
        return min(prompt, (sequence.computed // CHUNK + 1) * CHUNK)
