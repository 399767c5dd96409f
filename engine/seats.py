"""Where many answers are decoded: a context in which each of them has cells of its own.

In the context that holds everybody's, a step's attention walks every cell once for each row, whoever owns it. With 400
cells each, a step of 16 answers takes 106 ms there and 93 here, one of eight 75 and 71; with 700 cells each 128 and
106, 82 and 78. Taking a seat with 700 tokens takes 2 ms, and bringing 128 home 0.5 (`make bench BENCH=crowd`, stand-in,
2 threads).

What is in a resident's `tokens` is at home; what an answer has computed beyond it is on its seat alone, and goes home
before anybody needs it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from engine.errors import DecodeError
from engine.scheduler import Sequence as Answer

CELLS: Final = 12_288
"""Of all seats together: sixteen hold 768 tokens each, eight 1 536, four 3 072."""
COUNTS: Final = (4, 8, 16)
WORTH: Final = 8192
"""Cells of others that the rows of a step would walk in sum, from which a seat pays."""
SLACK: Final = 64
"""Tokens by which an answer must be able to grow on a seat that it takes."""


class Home(Protocol):
    """What is needed of the context that holds everybody's cells."""

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """The KV of some tokens."""

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append what a `save` gave; whether that was whole."""


class Streams(Protocol):
    """What is needed of the context of seats."""

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Run a step, its entries in the order of their sequences."""

    def cut(self, sequence: int, length: int) -> object:
        """Keep the first `length` tokens of `sequence`."""

    def save(self, sequence: int, start: int) -> bytes | None:
        """The KV of all tokens from `start` on; None if only `take` can do that."""

    def take(self, sequence: int, start: int) -> bytes:
        """The same, and with that empty `sequence`."""

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Fill the empty `sequence` with what a `save` gave; whether that was whole."""

    def set_threads(self, threads: int) -> None:
        """Use so many threads."""

    def close(self) -> None:
        """Free it."""


@dataclass
class _Seat:
    """Where an answer sits, and how many of its tokens are there."""

    number: int
    length: int


Context = TypeVar("Context", bound=Streams)


class Seats(Generic[Context]):
    """The answers that are decoded side by side, in a context that is made as they need it."""

    def __init__(self, home: Home, make: Callable[[int, int], Context]) -> None:
        """`make` gives a context of so many sequences with so many cells each."""
        self._home = home
        self._make = make
        self._own: Context | None = None
        self._count = 0
        self._taken: dict[int, _Seat] = {}
        """By request."""

    def __contains__(self, request: int) -> bool:
        """Whether it has a seat."""
        return request in self._taken

    def takes(self, answers: Sequence[Answer], *, rows: int, used: int) -> bool:
        """Whether a step of all that decode is better run here, now that `used` cells are in use at home."""
        # Who sits stays seated for less, or the same cells would go back and forth.
        counts, growth, worth = ((self._count,), 1, WORTH // 2) if self._taken else (COUNTS, SLACK, WORTH)
        longest = max(answer.computed for answer in answers) + growth
        fits = any(_fits(count, rows, longest) for count in counts)
        together = self._taken.keys() <= {answer.request for answer in answers}
        return fits and together and (len(answers) - 1) * used >= worth

    def decode(self, answers: Sequence[Answer], *, rows: int, threads: int) -> tuple[Context, list[int]]:
        """Compute the next token of each of `answers` in a step of `rows`, as many as there are answers or more.

        Gives the context that has the logits, and each answer's row. Raises DecodeError.
        """
        own = self._context(rows, max(answer.computed for answer in answers) + 1)
        own.set_threads(threads)
        seats = [self._seat(own, answer, rows) for answer in answers]
        # llama.cpp splits a step where sequence numbers leave a gap: rows of nothing fill it.
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
        """Write home what was computed on its seat beyond what its resident says; whether that is whole there.

        It stays on its seat, where the model's cells allow for that.
        """
        seat = self._taken.get(answer.request)
        if seat is None or self._own is None:
            return True
        state = self._own.save(seat.number, len(answer.resident.tokens))
        return self.leave(answer) if state is None else self._written(answer, state, seat.length)

    def leave(self, answer: Answer) -> bool:
        """Bring that home, and let it have no seat any more."""
        seat = self._taken.pop(answer.request, None)
        if seat is None or self._own is None:
            return True
        self._own.cut(seat.number, seat.length)  # a step that failed may have left more
        return self._written(answer, self._own.take(seat.number, len(answer.resident.tokens)), seat.length)

    def close(self) -> None:
        """Give the memory back, unless somebody still sits there."""
        if self._own is not None and not self._taken:
            self._own.close()
            self._own = None

    def _written(self, answer: Answer, state: bytes, length: int) -> bool:
        """Append to what is at home; whether it holds `length` tokens then."""
        start = len(answer.resident.tokens)
        return length == start or self._home.load(state, answer.resident.sequence, start, length)

    def _context(self, rows: int, longest: int) -> Context:
        """One with a seat for each of `rows` and for the `longest`; only an empty one is made anew."""
        if self._own is None or not _fits(self._count, rows, longest):
            self.close()
            self._count = next(count for count in COUNTS if _fits(count, rows, longest))
            self._own = self._make(self._count, CELLS // self._count)
        return self._own

    def _seat(self, own: Context, answer: Answer, rows: int) -> _Seat:
        """Its seat, one of the first `rows`, taken now if it had none."""
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
    """Whether `count` seats are enough for `rows` answers, the `longest` of so many tokens."""
    return rows <= count and longest <= CELLS // count
