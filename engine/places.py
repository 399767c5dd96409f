"""Where a step is computed: at home, in the annex, or on seats.

Home is the context that holds everybody's cells: prefixes are shared there, blocks are written from it and read into
it. A step that would be slow there, beside the cells of many others, is computed in one of two contexts beside it, and
what it gave goes home. Home takes memory as its cells come into use, and seats have what it has not taken. Where there
is no memory for one of the two, home does without it from then on.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from engine import annex, seats
from engine.annex import Annex
from engine.cost_model import WIDEST
from engine.errors import DecodeError, ModelLoadError
from engine.llama import Context, Model, Streams
from engine.memory import settle
from engine.scheduler import Sequence, Step
from engine.seats import Seats


class Computed(NamedTuple):
    """What a step gave: the logits of each part's last token lie in `context` at its row."""

    context: Context | Streams
    rows: list[int]


class Places:
    """The contexts of one engine. `home` is the one that everybody else may read and write."""

    def __init__(self, model: Model, *, cells: int, sequences: int) -> None:
        """Make `home`; the others are made when they are first wanted. Raises ModelLoadError."""
        self._padding = sequences  # the number of a sequence that holds nothing but a step's padding
        self.home = Context(model, cells=cells + WIDEST, sequences=sequences + 1, threads=1)
        self.cells = self.home.cells - WIDEST
        settle()  # before there are threads beside this one
        self._touched = 0
        """Cells that home has memory for: as many as were ever in use."""
        self._threads = 1
        self._annex: Annex[Context] | None = None
        self._seats: Seats[Streams] | None = None
        if model.has_blocks:  # else nothing can be brought from one to the other
            make = partial(Context, model, cells=annex.ANNEX_CELLS, sequences=annex.SLOTS, threads=1)
            self._annex = Annex(self.home, make)
            self._seats = Seats(self.home, partial(Streams, model))

    def compute(self, step: Step, *, used: int) -> Computed:
        """Run a step while `used` cells are in use at home, and note what it computed. Raises DecodeError."""
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
        """Have all at home that was computed of a sequence; it may stay on its seat, or is to `leave` it.

        Raises DecodeError.
        """
        if self._seats is not None and sequence.request in self._seats:
            if not (self._seats.leave if leave else self._seats.copy)(sequence):
                raise DecodeError(1)
            _is_home(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Make an end of a sequence, after whatever step: at home is what its resident says then, and nowhere else."""
        with suppress(DecodeError):
            self.write_home(sequence, leave=True)
        if self._annex is not None:
            self._annex.drop(sequence.request)
        # A failed step may have left part of a chunk behind, which cannot be taken back from a recurrent state.
        resident = sequence.resident
        if not self.home.cut(resident.sequence, len(resident.tokens)):
            self.home.cut(resident.sequence, 0)
            resident.tokens = []

    def set_threads(self, threads: int) -> None:
        """Use so many from the next step on."""
        self._threads = threads
        self.home.set_threads(threads)

    @property
    def _crowded(self) -> bool:
        """Whether home needs the memory that seats would take, or has had it."""
        return self._touched + seats.CELLS > self.cells

    def _on_seats(self, step: Step, used: int) -> Computed | None:
        answers = [answer for answer, _ in step.parts]
        rows = len(answers) + step.padding
        if self._seats is None or not step.round or self._crowded:
            return None
        if not self._seats.takes(answers, rows=rows, used=used):
            return None
        try:
            return Computed(*self._seats.decode(answers, rows=rows, threads=self._threads))
        except ModelLoadError:  # nobody sits there, or it would be made already
            self._seats = None
            return None

    def _give_up_seats(self) -> None:
        """Give their memory back once home needs it, and nobody sits there any more."""
        if self._seats is not None and self._crowded:
            self._seats.close()

    def _in_annex(self, step: Step, used: int) -> Computed | None:
        if self._annex is None or not self._annex.takes(step.parts, used):
            return None
        try:
            return Computed(self._annex.decode(step.parts, self._threads), _last_rows(step))
        except ModelLoadError:
            self._annex = None
            return None

    def _at_home(self, step: Step) -> Computed:
        entries = [
            (sequence.tokens[p], p, sequence.resident.sequence, p == len(sequence.tokens) - 1)
            for sequence, tokens in step.parts
            for p in range(sequence.computed, sequence.computed + tokens)
        ]
        # Padding wants logits, too: the output matrix is the widest of all, and it is its kernel that likes the width.
        entries += [(entries[0][0], i, self._padding, True) for i in range(step.padding)]
        try:
            self.home.decode(entries)
        finally:
            if step.padding:
                self.home.cut(self._padding, 0)
        return Computed(self.home, _last_rows(step))


def _is_home(sequence: Sequence) -> None:
    """Note that all that was computed of it is at home."""
    tokens = sequence.resident.tokens
    tokens.extend(sequence.tokens[len(tokens) : sequence.computed])


def _last_rows(step: Step) -> list[int]:
    return [row - 1 for row in itertools.accumulate(tokens for _, tokens in step.parts)]
