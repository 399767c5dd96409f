"""Checks that the shards of a split model belong together, from the headers of their GGUF files.

llama.cpp checks less and names no file: it accepts a shard of another model if the numbers of tensors add up. A header
holds `split.no` (from 0), `split.count` and `split.tensors.count` (the tensors of all shards).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.modelfile import model_files

_HEAD: Final = struct.Struct("<4sIQQ")
"""Magic number, version, number of tensors, number of keys."""
_INTEGERS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 7: "<B", 10: "<Q", 11: "<q"}
_SIZES: Final = {6: 4, 12: 8, **{kind: struct.calcsize(layout) for kind, layout in _INTEGERS.items()}}
_STRING: Final = 8
_ARRAY: Final = 9


@dataclass(frozen=True)
class _Header:
    number: int | None
    count: int | None
    tensors_in_all: int | None
    tensors: int


def split_fault(path: Path) -> str:
    """Return in one line why the shards of the model `path` do not belong together; empty if they do.

    Unreadable headers count as valid here, because llama.cpp reports a better reason for them. Raises OSError.
    """
    shards = model_files(path)
    if len(shards) == 1:
        return ""
    try:
        headers = [_header(shard) for shard in shards]
    except (ValueError, KeyError, struct.error):
        return ""
    if headers[0].count is None:
        return ""  # a single file with the name of a shard
    for number, (shard, header) in enumerate(zip(shards, headers, strict=True)):
        if header.number is None or header.count is None:
            return f"{shard.name} is no part of a split model"
        if (header.number, header.count) != (number, len(shards)):
            stated = f"part {header.number + 1} of {header.count}"
            return f"{shard.name} states that it is {stated}, not {number + 1} of {len(shards)}"
        if header.tensors_in_all != headers[0].tensors_in_all:
            return f"{shard.name} belongs to another model than {path.name}: their numbers of tensors differ"
    found, expected = sum(header.tensors for header in headers), headers[0].tensors_in_all
    if found != expected:
        return f"its parts hold {found} tensors instead of {expected}: one of them belongs to another model"
    return ""


def _header(path: Path) -> _Header:
    """Read the header of `path`. Raises OSError, and ValueError, KeyError or struct.error if it is not GGUF."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, _, tensors, keys = _HEAD.unpack_from(data)
        if magic != b"GGUF":
            raise ValueError("not a GGUF file")
        at, found = _HEAD.size, dict[bytes, int]()
        for _ in range(keys):
            key, at = _string(data, at)
            (kind,), at = struct.unpack_from("<I", data, at), at + 4
            if key.startswith(b"split.") and kind in _INTEGERS:
                (found[key],) = struct.unpack_from(_INTEGERS[kind], data, at)
            at = _skipped(data, at, kind)
    return _Header(found.get(b"split.no"), found.get(b"split.count"), found.get(b"split.tensors.count"), tensors)


def _string(data: mmap.mmap, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise ValueError("the file ends within its header")
    return data[at + 8 : end], end


def _skipped(data: mmap.mmap, at: int, kind: int) -> int:
    """Return where the value of type `kind` at `at` ends."""
    if kind == _STRING:
        return _string(data, at)[1]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != _STRING:
        return at + int(count) * _SIZES[inner]
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
    return at
