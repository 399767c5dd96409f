"""Seats: a context for decoding many sequences, in which each sequence has separate cells.

In the main context (`home`), the attention of a step visits every cell once for each row, whichever sequence owns the
cell. With 400 cells per sequence, a step of 16 sequences takes 106 ms in the main context and 93 ms on seats, a step of
eight 75 and 71; with 700 cells per sequence, 128 and 106, and 82 and 78. Copying 700 tokens to a seat takes 2 ms, and
copying 128 to the main context 0.5 (`make bench BENCH=crowd`, stand-in model, 2 threads).

The main context holds the `tokens` of a resident. Tokens computed after these are only on the seat, and are copied to
the main context before they are needed there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from engine.errors import DecodeError
from engine.scheduler import Sequence as Answer

CELLS: Final = 12_288
"""Cells of all seats together: 16 seats hold 768 tokens each, 8 hold 1 536, 4 hold 3 072."""
COUNTS: Final = (4, 8, 16)
"""Possible numbers of seats."""
WORTH: Final = 8192
"""Minimum visits to other sequences' cells, summed over the rows of a step, from which seats are faster."""
SLACK: Final = 64
"""Tokens of free space that a seat must have for the sequence that takes it."""


class Home(Protocol):
    """The methods of the main context that seats need."""

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """Return the KV of the tokens `start` to `end` of `sequence`."""

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append a saved `state` to `sequence`. Returns whether it was complete."""


class Streams(Protocol):
    """The methods of the seats' context."""

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Run a step, with the entries in the order of their sequences."""

    def cut(self, sequence: int, length: int) -> object:
        """Cut `sequence` to its first `length` tokens."""

    def save(self, sequence: int, start: int) -> bytes | None:
        """Return the KV of all tokens from `start` on; None for models where only `take` can do this."""

    def take(self, sequence: int, start: int) -> bytes:
        """Return the KV of all tokens from `start` on, and empty `sequence`."""

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Load a saved `state` into the empty `sequence`. Returns whether it was complete."""

    def set_threads(self, threads: int) -> None:
        """Use `threads` threads."""

    def close(self) -> None:
        """Free the context."""


@dataclass
class _Seat:
    """The seat of one sequence, and how many of its tokens the seat holds."""

    number: int
    length: int


Context = TypeVar("Context", bound=Streams)


class Seats(Generic[Context]):
    """The sequences that are decoded together in a separate context, which is created for the size that they need."""

    def __init__(self, home: Home, make: Callable[[int, int], Context]) -> None:
        """`make(sequences, cells)` creates a context with `cells` cells per sequence."""
        self._home = home
        self._make = make
        self._own: Context | None = None
        self._count = 0
        self._taken: dict[int, _Seat] = {}
        """The seats in use, by request."""

    def __contains__(self, request: int) -> bool:
        """Whether the sequence of `request` has a seat."""
        return request in self._taken

    def takes(self, answers: Sequence[Answer], *, rows: int, used: int) -> bool:
        """Whether a step of all decoding sequences should run here, with `used` cells in use in the main context."""
        # Sequences that already have seats keep them for a smaller gain, so that cells are not copied back and forth.
        counts, growth, worth = ((self._count,), 1, WORTH // 2) if self._taken else (COUNTS, SLACK, WORTH)
        longest = max(answer.computed for answer in answers) + growth
        fits = any(_fits(count, rows, longest) for count in counts)
        together = self._taken.keys() <= {answer.request for answer in answers}
        return fits and together and (len(answers) - 1) * used >= worth

    def decode(self, answers: Sequence[Answer], *, rows: int, threads: int) -> tuple[Context, list[int]]:
        """Compute the next token of each of `answers` in a step of `rows` rows, at least one per sequence.

        Returns the context that holds the logits, and the row of each sequence. Raises DecodeError.
        """
        own = self._context(rows, max(answer.computed for answer in answers) + 1)
        own.set_threads(threads)
        seats = [self._seat(own, answer, rows) for answer in answers]
        # llama.cpp splits a step at gaps in the sequence numbers. Dummy rows fill the gaps.
        entries = [(answers[0].tokens[0], 0, number, True) for number in range(rows)]
        for answer, seat in zip(answers, seats, strict=True):
            entries[seat.number] = (answer.tokens[seat.length], seat.length, seat.number, True)
        try:
            own.decode(entries)
        finally:
            for number in set(range(rows)) - {seat.number for seat in seats}:
                own.cut(number, 0)
        for seat in seats:
            seat.length += 1
        return own, [seat.number for seat in seats]

    def copy(self, answer: Answer) -> bool:
        """Copy the tokens that only the seat holds to the main context. Returns whether that succeeded.

        The sequence keeps its seat, if the format of the model's cells allows that.
        """
        seat = self._taken.get(answer.request)
        if seat is None or self._own is None:
            return True
        state = self._own.save(seat.number, len(answer.resident.tokens))
        return self.leave(answer) if state is None else self._written(answer, state, seat.length)

    def leave(self, answer: Answer) -> bool:
        """Copy the tokens that only the seat holds to the main context, and free the seat.

        Returns whether that succeeded.
        """
        seat = self._taken.pop(answer.request, None)
        if seat is None or self._own is None:
            return True
        self._own.cut(seat.number, seat.length)  # a step that failed may have left more
        return self._written(answer, self._own.take(seat.number, len(answer.resident.tokens)), seat.length)

    def close(self) -> None:
        """Free the context, unless a seat is in use."""
        if self._own is not None and not self._taken:
            self._own.close()
            self._own = None

    def _written(self, answer: Answer, state: bytes, length: int) -> bool:
        """Append `state` to the sequence in the main context. Returns whether it then holds `length` tokens."""
        start = len(answer.resident.tokens)
        return length == start or self._home.load(state, answer.resident.sequence, start, length)

    def _context(self, rows: int, longest: int) -> Context:
        """Return a context with `rows` seats for sequences up to `longest`. Only an unused context is replaced."""
        if self._own is None or not _fits(self._count, rows, longest):
            self.close()
            self._count = next(count for count in COUNTS if _fits(count, rows, longest))
            self._own = self._make(self._count, CELLS // self._count)
        return self._own

    def _seat(self, own: Context, answer: Answer, rows: int) -> _Seat:
        """Return the seat of a sequence, one of the first `rows`. Assigns or moves the seat if needed."""
        seat = self._taken.get(answer.request)
        if seat is not None and seat.number < rows:
            return seat
        if seat is None:
            length = answer.computed
            state = self._home.save(answer.resident.sequence, 0, length)
        else:
            length = seat.length
            state = own.take(seat.number, 0)
        number = min(set(range(rows)) - {seat.number for seat in self._taken.values()})
        if not own.load(state, number, 0, length):
            raise DecodeError(1)
        self._taken[answer.request] = _Seat(number, length)
        return self._taken[answer.request]


def _fits(count: int, rows: int, longest: int) -> bool:
    """Whether `count` seats hold `rows` sequences, the longest of which has `longest` tokens."""
    return rows <= count and longest <= CELLS // count
