"""Contexts without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence


class Cells:
    """Remembers which tokens each sequence holds, and refuses one with a hole."""

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
        """Let `target`, which must be empty, hold the first tokens of `source`."""
        assert self.held[target] == [], "cells would be mixed"
        self.held[target] = self.held[source][:length]

    def cut(self, sequence: int, length: int) -> bool:
        """Keep the first `length` tokens."""
        del self.held[sequence][length:]
        return True

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """What `load` takes."""
        assert end <= len(self.held[sequence])
        return json.dumps(self.held[sequence][start:end]).encode()

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Append what `save` gave."""
        assert start == len(self.held[sequence])
        self.held[sequence] += json.loads(state)
        return len(self.held[sequence]) == end

    def set_threads(self, threads: int) -> None:
        """Nothing runs here."""


class Chairs(Cells):
    """A context of streams that refuses what llama.cpp does, and what it would be slow at."""

    def __init__(self, sequences: int, cells: int) -> None:
        """Start empty, with so many cells for each."""
        super().__init__(sequences, sequences * cells)
        self.each = cells

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Hold each token at its position."""
        assert [sequence for _, _, sequence, _ in entries] == list(range(len(entries))), "the step would be split"
        assert all(position < self.each for _, position, _, _ in entries)
        super().decode(entries)

    def save(self, sequence: int, start: int, end: int | None = None) -> bytes:
        """What `load` takes, of all from `start` on."""
        return super().save(sequence, start, len(self.held[sequence]) if end is None else end)

    def take(self, sequence: int, start: int) -> bytes:
        """The same, and nothing is held afterwards."""
        state = self.save(sequence, start, len(self.held[sequence]))
        self.cut(sequence, 0)
        return state

    def load(self, state: bytes, sequence: int, start: int, end: int) -> bool:
        """Fill an empty one."""
        assert self.held[sequence] == []
        assert end - start <= self.each
        return super().load(state, sequence, start, end)

    def close(self) -> None:
        """Nobody may sit here."""
        assert not any(self.held), "what is not at home would be lost"
