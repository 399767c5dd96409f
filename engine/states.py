"""The KV of one sequence as llama.cpp writes and reads it: what a context of streams and one without have in common.

A head (magic number, version, number of streams); for each stream its number of cells and, unless that is 0, of each
cell its position and owners, and then, layer by layer, the keys of all cells and after these their values.
"""

from __future__ import annotations

import struct

import numpy as np

_HEAD = struct.Struct("<III")
_COUNT = struct.Struct("<I")
_START = _HEAD.size + _COUNT.size
"""Where the cells of the first stream begin."""
_CELL = np.dtype("<i4, <u4, <u4")
"""Of each cell: position, number of owners, and the owner; some models' cells have more."""
_LAYERS = struct.Struct("<II")
"""Whether values lie transposed, and the number of layers."""
_ROWS = struct.Struct("<iQ")
"""Before the keys of all cells in a layer, and likewise the values: their type, and the bytes of one cell's."""


def cells(state: bytes) -> int:
    """How many cells a state of one stream has."""
    return int(_COUNT.unpack_from(state, _HEAD.size)[0]) if len(state) >= _START else 0


def of_one(state: memoryview, sequence: int, count: int) -> bytes:
    """Of a state of `count` streams, all of which but that of `sequence` are empty, the state of one stream."""
    magic, version, _ = _HEAD.unpack_from(state)
    end = len(state) - _COUNT.size * (count - 1 - sequence)
    return _HEAD.pack(magic, version, 1) + state[_HEAD.size + _COUNT.size * sequence : end]


def among(state: bytes, count: int) -> bytes:
    """A state of one stream with empty ones after it, `count` in all; llama.cpp refuses it if it was none of one."""
    magic, version, streams = _HEAD.unpack_from(state)
    head, empty = _HEAD.pack(magic, version, streams + count - 1), bytes(_COUNT.size * (count - 1))
    return b"".join((head, memoryview(state)[_HEAD.size :], empty))


def tail(state: bytes, start: int) -> bytes | None:
    """Of a state of one stream the part from token `start` on; None if it does not look as it is taken to do."""
    view = memoryview(state)
    count = cells(state)
    if len(view) < _START + count * _CELL.itemsize:
        return None
    if not np.array_equal(np.frombuffer(view, _CELL, count, _START)["f0"], np.arange(count)):
        return None
    parts: list[bytes | memoryview] = [view[: _HEAD.size], _COUNT.pack(count - start)]
    at = _START

    def keep(size: int, each: int = 0) -> None:
        """Take the next `size` bytes, and of what follows, `each` bytes a cell, what belongs to the tail."""
        nonlocal at
        parts.append(view[at : at + size])
        parts.append(view[at + size + start * each : at + size + count * each])
        at += size + count * each

    keep(0, _CELL.itemsize)
    keep(_LAYERS.size)
    while at < len(view):
        _, row = _ROWS.unpack_from(view, at)
        keep(_ROWS.size, row)
    return b"".join(parts)
