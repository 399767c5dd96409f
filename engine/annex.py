"""Where prompts are computed while many cells are in use: a small context beside the one that holds everybody's.

A step's attention walks every cell of its context, whoever owns it. Beside 5 000 cells of others, 72 tokens of a prompt
take 360 ms, and 290 in a context where they are alone with what came before them (stand-in, 2 threads); bringing that
in and the result home takes 5 ms. The cells at home are the truth all the time: nothing is lost when a mirror goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from engine.errors import DecodeError
from engine.scheduler import Sequence as Prompt

ANNEX_CELLS: Final = 3072
"""Prompts that take more, with what came before them, are computed at home."""
SLOTS: Final = 8
"""Prompts that can be under way here."""
CROWD: Final = 1024
"""Cells of others from which the way may pay."""
WORTH: Final = 64
"""A token that has to be brought there costs as much as one row's walk over so many cells of others."""


class Cells(Protocol):
    """What is needed of a context."""

    cells: int

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Run a step."""

    def cut(self, sequence: int, length: int) -> object:
        """Keep the first `length` tokens of `sequence`."""

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """The KV of some tokens."""

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append what `save` gave; whether that was whole."""

    def set_threads(self, threads: int) -> None:
        """Use so many threads."""


@dataclass
class _Mirror:
    """A prompt's cells as they are here."""

    slot: int
    length: int = 0


Context = TypeVar("Context", bound=Cells)


class Annex(Generic[Context]):
    """Mirrors of the prompts that are computed now, in a context that is made when it is first wanted."""

    def __init__(self, home: Context, make: Callable[[], Context]) -> None:
        """`make` gives a context of ANNEX_CELLS cells and SLOTS sequences."""
        self._home = home
        self._make = make
        self._own: Context | None = None
        self._mirrors: dict[int, _Mirror] = {}
        """By request."""

    def takes(self, parts: Sequence[tuple[Prompt, int]], used: int) -> bool:
        """Whether this step is better computed here, now that `used` cells are in use at home."""
        before = sum(prompt.computed for prompt, _ in parts)
        rows = sum(tokens for _, tokens in parts)
        brought = sum(prompt.computed for prompt, _ in parts if prompt.request not in self._mirrors)
        crowd = used - before
        worth = crowd >= CROWD and rows * crowd >= WORTH * brought
        return worth and before + rows <= ANNEX_CELLS and len(parts) <= SLOTS

    def decode(self, parts: Sequence[tuple[Prompt, int]], threads: int) -> Context:
        """Compute the step and bring its cells home; gives the context that has its logits. Raises DecodeError."""
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
        """Forget a prompt, done or given up."""
        mirror = self._mirrors.pop(request, None)
        if mirror is not None and self._own is not None:
            self._own.cut(mirror.slot, 0)

    def _make_room(self, parts: Sequence[tuple[Prompt, int]]) -> None:
        """Let go of prompts that are not in this step, oldest first, until it fits."""
        asked = {prompt.request for prompt, _ in parts}
        ends = sum(prompt.computed + tokens for prompt, tokens in parts)
        for request in [request for request in self._mirrors if request not in asked]:
            others = [mirror for other, mirror in self._mirrors.items() if other not in asked]
            if ends + sum(mirror.length for mirror in others) <= ANNEX_CELLS and len(others) + len(parts) <= SLOTS:
                return
            self.drop(request)

    def _mirror(self, own: Context, prompt: Prompt) -> _Mirror:
        """What comes before this prompt's next token, as it is at home."""
        mirror = self._mirrors.get(prompt.request)
        if mirror is None:
            free = set(range(SLOTS)) - {mirror.slot for mirror in self._mirrors.values()}
            mirror = self._mirrors[prompt.request] = _Mirror(min(free))
        if mirror.length != prompt.computed:  # a step of it was computed at home meanwhile
            own.cut(mirror.slot, 0)
            mirror.length = 0
            if prompt.computed and not own.load(
                self._home.save(prompt.resident.sequence, 0, prompt.computed), mirror.slot, 0, prompt.computed
            ):
                raise DecodeError(1)
            mirror.length = prompt.computed
        return mirror
