"""The annex: a small context for prompts, used while the main context (`home`) holds many cells of other sequences.

The attention of a step visits every cell of its context, whichever sequence owns the cell. 72 tokens of a prompt take
360 ms next to 5 000 cells of other sequences, and 290 ms in a context that holds only their own prefix (stand-in model,
2 threads). Copying the prefix in and the result to the main context takes 5 ms. The main context always holds all
computed cells, so nothing is lost when a mirror is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from engine.errors import DecodeError
from engine.scheduler import Sequence as Prompt

ANNEX_CELLS: Final = 3072
"""Cells of the annex. Prompts that need more, including their prefix, are computed in the main context."""
SLOTS: Final = 8
"""Maximum number of unfinished prompts in the annex."""
CROWD: Final = 1024
"""Minimum cells of other sequences in the main context for the annex to be faster."""
WORTH: Final = 64
"""Cost of copying one token to the annex, as the number of other sequences' cells that one row visits in that time."""


class Cells(Protocol):
    """The methods of a context that the annex needs."""

    cells: int

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Run a step."""

    def cut(self, sequence: int, length: int) -> object:
        """Cut `sequence` to its first `length` tokens."""

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """Return the KV of the tokens `start` to `end` of `sequence`."""

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append a saved `state` to `sequence`. Returns whether it was complete."""

    def set_threads(self, threads: int) -> None:
        """Use `threads` threads."""


@dataclass
class _Mirror:
    """The copy of a prompt's cells in the annex: its sequence number and its length in tokens."""

    slot: int
    length: int = 0


Context = TypeVar("Context", bound=Cells)


class Annex(Generic[Context]):
    """Mirrors of the prompts that are being computed, in a context that is created on first use."""

    def __init__(self, home: Context, make: Callable[[], Context]) -> None:
        """`make` creates a context of ANNEX_CELLS cells and SLOTS sequences."""
        self._home = home
        self._make = make
        self._own: Context | None = None
        self._mirrors: dict[int, _Mirror] = {}
        """The mirrors, by request."""

    def takes(self, parts: Sequence[tuple[Prompt, int]], used: int) -> bool:
        """Whether this step should run here, with `used` cells in use in the main context."""
        before = sum(prompt.computed for prompt, _ in parts)
        rows = sum(tokens for _, tokens in parts)
        brought = sum(prompt.computed for prompt, _ in parts if prompt.request not in self._mirrors)
        crowd = used - before
        worth = crowd >= CROWD and rows * crowd >= WORTH * brought
        return worth and before + rows <= ANNEX_CELLS and len(parts) <= SLOTS

    def decode(self, parts: Sequence[tuple[Prompt, int]], threads: int) -> Context:
        """Run the step and copy its cells to the main context. Returns the context that holds the logits.

        Raises DecodeError.
        """
        if self._own is None:
            self._own = self._make()
        own = self._own
        own.set_threads(threads)
        self._make_room(parts)
        mirrors = [self._mirror(own, prompt) for prompt, _ in parts]
        entries = [
            (prompt.tokens[p], p, mirror.slot, p == len(prompt.tokens) - 1)
            for (prompt, tokens), mirror in zip(parts, mirrors, strict=True)
            for p in range(prompt.computed, prompt.computed + tokens)
        ]
        own.decode(entries)
        for (prompt, tokens), mirror in zip(parts, mirrors, strict=True):
            start, end = prompt.computed, prompt.computed + tokens
            mirror.length = end
            if not self._home.load(own.save(mirror.slot, start, end), prompt.resident.sequence, start, end):
                raise DecodeError(1)
            if end == len(prompt.tokens):
                self.drop(prompt.request)
        return own

    def drop(self, request: int) -> None:
        """Drop the mirror of a finished or aborted prompt."""
        mirror = self._mirrors.pop(request, None)
        if mirror is not None and self._own is not None:
            self._own.cut(mirror.slot, 0)

    def _make_room(self, parts: Sequence[tuple[Prompt, int]]) -> None:
        """Drop mirrors of prompts that are not in this step, oldest first, until the step fits."""
        asked = {prompt.request for prompt, _ in parts}
        ends = sum(prompt.computed + tokens for prompt, tokens in parts)
        for request in [request for request in self._mirrors if request not in asked]:
            others = [mirror for other, mirror in self._mirrors.items() if other not in asked]
            if ends + sum(mirror.length for mirror in others) <= ANNEX_CELLS and len(others) + len(parts) <= SLOTS:
                return
            self.drop(request)

    def _mirror(self, own: Context, prompt: Prompt) -> _Mirror:
        """Return the mirror of a prompt, holding all its computed tokens. Raises DecodeError."""
        mirror = self._mirrors.get(prompt.request)
        if mirror is None:
            free = set(range(SLOTS)) - {mirror.slot for mirror in self._mirrors.values()}
            mirror = self._mirrors[prompt.request] = _Mirror(min(free))
        if mirror.length != prompt.computed:  # a step of the prompt ran in the main context since
            own.cut(mirror.slot, 0)
            mirror.length = 0
            if prompt.computed and not own.load(
                self._home.save(prompt.resident.sequence, 0, prompt.computed), mirror.slot, 0, prompt.computed
            ):
                raise DecodeError(1)
            mirror.length = prompt.computed
        return mirror
