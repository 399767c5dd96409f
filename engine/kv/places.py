"""Chooses the context of each step: the main context (`home`), the annex or the seats.

The main context holds the cells of all sequences. Sequences share prefixes in it, and blocks are stored from it and
loaded into it. A step that would be slow there, because attention visits the cells of all other sequences too, runs in
one of two smaller contexts, and its KV is copied to the main context. The main context takes memory as its cells come
into use, and the seats use memory that it has not taken. If there is no memory for one of the two smaller contexts, the
main context takes over its steps from then on.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

from engine.candidates import Logits
from engine.cost_model import WIDEST
from engine.errors import DecodeError, ModelLoadError
from engine.kv import annex, seats
from engine.kv.annex import Annex
from engine.kv.seats import Seats
from engine.llama import Context, Model, Streams
from engine.memory import settle
from engine.scheduler import Sequence, Step


class Results(Protocol):
    """A context whose step has been computed."""

    def logits(self, index: int) -> Logits:
        """Return the logits of a row. Valid until the next step."""


class Computed(NamedTuple):
    """The result of a step: `context` holds the logits of each part's last token, at the row in `rows`."""

    context: Results
    rows: list[int]


class Places:
    """The contexts of one engine. Other modules may access only `home`, the main context."""

    def __init__(self, model: Model, *, cells: int, sequences: int) -> None:
        """Create the main context. The others are created on first use. Raises ModelLoadError."""
        self._padding = sequences  # the number of a sequence that holds only the padding of a step
        self.home = Context(model, cells=cells + WIDEST, sequences=sequences + 1, threads=1)
        self.cells = self.home.cells - WIDEST
        settle()  # requires that no other thread runs yet
        self._touched = 0
        """Maximum cells ever in use in the main context: it has taken memory for so many."""
        self._threads = 1
        self._annex: Annex[Context] | None = None
        self._seats: Seats[Streams] | None = None
        if model.has_blocks:  # otherwise KV can't be copied between contexts
            make = partial(Context, model, cells=annex.ANNEX_CELLS, sequences=annex.SLOTS, threads=1)
            self._annex = Annex(self.home, make)
            self._seats = Seats(self.home, partial(Streams, model))

    def compute(self, step: Step, *, used: int) -> Computed:
        """Run a step while `used` cells of the main context are in use, and advance its sequences.

        Raises DecodeError.
        """
        self._touched = max(self._touched, used)
        computed = self._on_seats(step, used)
        if computed is None:
            for sequence, _ in step.parts:
                self.write_home(sequence, leave=True)
            self._give_up_seats()
            computed = self._in_annex(step, used) or self._at_home(step)
        for sequence, tokens in step.parts:
            sequence.computed += tokens
            if self._seats is None or sequence.request not in self._seats:
                _is_home(sequence)
        return computed

    def write_home(self, sequence: Sequence, *, leave: bool = False) -> None:
        """Copy all computed KV of a sequence to the main context. With `leave`, its seat becomes free.

        Raises DecodeError.
        """
        if self._seats is not None and sequence.request in self._seats:
            if not (self._seats.leave if leave else self._seats.copy)(sequence):
                raise DecodeError(1)
            _is_home(sequence)

    def keep_draft(self, sequence: Sequence) -> None:
        """Count the draft token that follows the computed ones as computed: it was sampled."""
        sequence.computed += 1
        _is_home(sequence)

    def drop_draft(self, sequence: Sequence) -> None:
        """Remove the cells of draft tokens that were not sampled."""
        self.home.cut(sequence.resident.sequence, sequence.computed)

    def leave(self, sequence: Sequence) -> None:
        """Release a sequence, also after a failed step: only the tokens of its resident remain, in the main context."""
        with suppress(DecodeError):
            self.write_home(sequence, leave=True)
        if self._annex is not None:
            self._annex.drop(sequence.request)
        # A failed step may have left part of a chunk behind, which can't be removed from a recurrent state.
        resident = sequence.resident
        if not self.home.cut(resident.sequence, len(resident.tokens)):
            self.home.cut(resident.sequence, 0)
            resident.tokens = []

    def set_threads(self, threads: int) -> None:
        """Use `threads` threads from the next step on."""
        self._threads = threads
        self.home.set_threads(threads)

    @property
    def _crowded(self) -> bool:
        """Whether the main context needs the memory that seats would take, or has used it."""
        return self._touched + seats.CELLS > self.cells

    def _on_seats(self, step: Step, used: int) -> Computed | None:
        answers = [answer for answer, _ in step.parts]
        rows = len(answers) + step.padding
        if self._seats is None or not step.round or step.drafts or self._crowded:
            return None
        if not self._seats.takes(answers, rows=rows, used=used):
            return None
        try:
            return Computed(*self._seats.decode(answers, rows=rows, threads=self._threads))
        except ModelLoadError:  # the context doesn't exist yet, so no sequence has a seat
            self._seats = None
            return None

    def _give_up_seats(self) -> None:
        """Free the seats' memory once the main context needs it and no sequence has a seat."""
        if self._seats is not None and self._crowded:
            self._seats.close()

    def _in_annex(self, step: Step, used: int) -> Computed | None:
        if self._annex is None or step.drafts or not self._annex.takes(step.parts, used):
            return None
        try:
            return Computed(self._annex.decode(step.parts, self._threads), _last_rows(step))
        except ModelLoadError:
            self._annex = None
            return None

    def _at_home(self, step: Step) -> Computed:
        entries = []
        for sequence, tokens in step.parts:
            number, start = sequence.resident.sequence, len(sequence.tokens)
            entries += [
                (sequence.tokens[p], p, number, p == start - 1)
                for p in range(sequence.computed, sequence.computed + tokens)
            ]
            entries += [(token, start + i, number, True) for i, token in enumerate(step.draft(sequence))]
        # Padding rows request logits too: padding helps most in the output matrix, the largest of all.
        entries += [(entries[0][0], i, self._padding, True) for i in range(step.padding)]
        try:
            self.home.decode(entries)
        finally:
            if step.padding:
                self.home.cut(self._padding, 0)
        return Computed(self.home, _last_rows(step))


def _is_home(sequence: Sequence) -> None:
    """Record that the main context holds all computed tokens of a sequence."""
    tokens = sequence.resident.tokens
    tokens.extend(sequence.tokens[len(tokens) : sequence.computed])


def _last_rows(step: Step) -> list[int]:
    """Return the rows of the parts' last tokens. The rows of drafts follow them."""
    ends = itertools.accumulate(tokens + len(step.draft(sequence)) for sequence, tokens in step.parts)
    return [end - 1 - len(step.draft(sequence)) for end, (sequence, _) in zip(ends, step.parts, strict=True)]
