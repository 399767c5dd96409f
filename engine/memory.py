"""What memory an engine keeps once its model is loaded.

llama.cpp fills KV cells with zeros when it makes a context: 16 384 of a Qwen2.5-0.5B take 200 MB before the first
token. An anonymous page that was given back is one of zeros when it is touched again, so nothing changes but who has
the memory meanwhile: an engine takes memory for as many cells as were ever in use at once.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

LARGE: Final = 32 << 20
"""Bytes of a mapping from which it is looked through."""
PRESENT: Final = np.uint64(1 << 63)
"""The bit of a page's entry in /proc/self/pagemap that says that it has memory."""
HEAP: Final = {-3: 32 << 20, -1: 64 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
"""Bytes up to which a chunk lies on glibc's heap, and that are free at its end before they are given back. KV comes and
goes there, blocks of 1.6 MB and whole conversations of 14: by the default, glibc asks the kernel for each one's pages
anew, which doubles the time of a fetch (`make bench BENCH=blocks`, with these as MALLOC_MMAP_THRESHOLD_ and
MALLOC_TRIM_THRESHOLD_ and without). Set from the start, they would have what loading leaves lie there too, and stay."""
_libc: Final = ctypes.CDLL(None)


def settle() -> None:
    """Give back what loading left over, and keep what serving uses, in 0.15 s a GB of cells.

    No other thread may run meanwhile.
    """
    with suppress(AttributeError):  # another libc than glibc
        _libc.malloc_trim(0)  # freed chunks between those of the vocabulary
        for parameter, size in HEAP.items():
            _libc.mallopt(parameter, size)
    with suppress(OSError):  # where the kernel does not tell, memory stays as it is
        _give_zeros_back()


def _give_zeros_back() -> None:
    """Give back what is zero in large anonymous mappings: not on the heap, where Python writes. Raises OSError."""
    for start, end in _mappings():
        for page, pages in _runs(_present(start, end)):
            begin = start + page * mmap.PAGESIZE
            words = (ctypes.c_uint64 * (pages * mmap.PAGESIZE // 8)).from_address(begin)
            zero = np.asarray(np.ctypeslib.as_array(words).reshape(pages, -1).max(axis=1) == 0)
            for first, length in _runs(zero):
                address = ctypes.c_void_p(begin + first * mmap.PAGESIZE)
                _libc.madvise(address, ctypes.c_size_t(length * mmap.PAGESIZE), mmap.MADV_DONTNEED)


def _mappings() -> list[tuple[int, int]]:
    """Where this process has large memory that is no file's, as (start, end). Raises OSError."""
    fields = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    unnamed = [field[0].split("-") for field in fields if len(field) == 5 and field[1] == "rw-p"]
    ranges = [(int(start, 16), int(end, 16)) for start, end in unnamed]
    return [(start, end) for start, end in ranges if end - start >= LARGE]


def _present(start: int, end: int) -> NDArray[np.bool_]:
    """Which pages of a range have memory. Raises OSError."""
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(start // mmap.PAGESIZE * 8)
        entries = np.frombuffer(file.read((end - start) // mmap.PAGESIZE * 8), np.uint64)
    return (entries & PRESENT).astype(np.bool_)


def _runs(pages: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where runs of true pages begin, and how long they are."""
    edges = np.flatnonzero(np.diff(pages, prepend=False, append=False))
    for first, last in edges.reshape(-1, 2).tolist():
        yield first, last - first
