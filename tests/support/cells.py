"""Contexts without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence


class Cells:
    """A context that records the tokens of each sequence, and rejects gaps."""

    def __init__(self, sequences: int, cells: int = 10_000) -> None:
        """Start empty."""
        self.cells = cells
        self.held: list[list[int]] = [[] for _ in range(sequences)]

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Hold each token at its position."""
        for token, position, sequence, _ in entries:
            assert position == len(self.held[sequence])
            self.held[sequence].append(token)
        assert sum(map(len, self.held)) <= self.cells

    def share(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of `source` to `target`, which must be empty."""
        assert self.held[target] == [], "cells would be mixed"
        self.held[target] = self.held[source][:length]

    def cut(self, sequence: int, length: int) -> bool:
        """Keep the first `length` tokens."""
        del self.held[sequence][length:]
        return True

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """Return the tokens `start` to `end`, in the format of `load`."""
        assert end <= len(self.held[sequence])
        return json.dumps(self.held[sequence][start:end]).encode()

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append a saved `state`."""
        assert start == len(self.held[sequence])
        self.held[sequence] += json.loads(state)
        return len(self.held[sequence]) == end

    def set_threads(self, threads: int) -> None:
        """Do nothing: this context has no threads."""


class Chairs(Cells):
    """A context of seats that rejects steps that llama.cpp would reject, or split into several."""

    def __init__(self, sequences: int, cells: int) -> None:
        """Start empty, with `cells` cells per sequence."""
        super().__init__(sequences, sequences * cells)
        self.each = cells

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Hold each token at its position."""
        assert [sequence for _, _, sequence, _ in entries] == list(range(len(entries))), "the step would be split"
        assert all(position < self.each for _, position, _, _ in entries)
        super().decode(entries)

    def save(self, sequence: int, start: int, end: int | None = None) -> bytes:
        """Return all tokens from `start` on, in the format of `load`."""
        return super().save(sequence, start, len(self.held[sequence]) if end is None else end)

    def take(self, sequence: int, start: int) -> bytes:
        """Return all tokens from `start` on, and empty `sequence`."""
        state = self.save(sequence, start, len(self.held[sequence]))
        self.cut(sequence, 0)
        return state

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Load a saved `state` into the empty `sequence`."""
        assert self.held[sequence] == []
        assert end - start <= self.each
        return super().load(state, sequence, start, end)

    def close(self) -> None:
        """Check that no sequence has a seat."""
        assert not any(self.held), "tokens that the main context lacks would be lost"
