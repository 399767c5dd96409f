"""Converts llama.cpp's format of a sequence's KV between contexts with one stream and contexts with several.

The format: a header (magic number, version, number of streams); then for each stream its number of cells and, unless
that is 0, the position and owners of each cell, and layer by layer the keys and then the values of all cells.
"""

from __future__ import annotations

import struct

import numpy as np

_HEAD = struct.Struct("<III")
_COUNT = struct.Struct("<I")
_START = _HEAD.size + _COUNT.size
"""Offset of the cells of the first stream, in bytes."""
_CELL = np.dtype("<i4, <u4, <u4")
"""One cell: its position, its number of owners, and the owner. The cells of some models have more fields."""
_LAYERS = struct.Struct("<II")
"""Whether values are transposed, and the number of layers."""
_ROWS = struct.Struct("<iQ")
"""Header of a layer's keys, and of its values: their type, and the bytes per cell."""


def cells(state: bytes) -> int:
    """Return the number of cells in a state with one stream."""
    return int(_COUNT.unpack_from(state, _HEAD.size)[0]) if len(state) >= _START else 0


def of_one(state: memoryview, sequence: int, count: int) -> bytes:
    """Convert a state of `count` streams, where only the stream of `sequence` has cells, to a state of one stream."""
    magic, version, _ = _HEAD.unpack_from(state)
    end = len(state) - _COUNT.size * (count - 1 - sequence)
    return _HEAD.pack(magic, version, 1) + state[_HEAD.size + _COUNT.size * sequence : end]


def among(state: bytes, count: int) -> bytes:
    """Convert a state of one stream to a state of `count` streams, of which all but the first are empty.

    If `state` does not have one stream, llama.cpp rejects the result.
    """
    magic, version, streams = _HEAD.unpack_from(state)
    head, empty = _HEAD.pack(magic, version, streams + count - 1), bytes(_COUNT.size * (count - 1))
    return b"".join((head, memoryview(state)[_HEAD.size :], empty))


def tail(state: bytes, start: int) -> bytes | None:
    """Return the part of a state of one stream from token `start` on; None if its cells have an unexpected format."""
    view = memoryview(state)
    count = cells(state)
    if len(view) < _START + count * _CELL.itemsize:
        return None
    if not np.array_equal(np.frombuffer(view, _CELL, count, _START)["f0"], np.arange(count)):
        return None
    parts: list[bytes | memoryview] = [view[: _HEAD.size], _COUNT.pack(count - start)]
    at = _START

    def copy(size: int, each: int = 0) -> None:
        """Copy the next `size` bytes and, of the array with `each` bytes per cell after them, the tail's part."""
        nonlocal at
        parts.append(view[at : at + size])
        parts.append(view[at + size + start * each : at + size + count * each])
        at += size + count * each

    copy(0, _CELL.itemsize)
    copy(_LAYERS.size)
    while at < len(view):
        _, row = _ROWS.unpack_from(view, at)
        copy(_ROWS.size, row)
    return b"".join(parts)
