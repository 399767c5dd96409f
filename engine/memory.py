"""Returns memory to the kernel that an engine does not need after loading its model.

llama.cpp fills KV cells with zeros when it creates a context: 16 384 cells of Qwen2.5-0.5B take 200 MB before the first
token. The kernel fills an anonymous page with zeros when it is touched again after a release. So releasing pages of
zeros changes no content, and an engine only takes memory for the cells that were ever in use at once.
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
"""Minimum size in bytes of a mapping that is searched for pages of zeros."""
PRESENT: Final = np.uint64(1 << 63)
"""The bit of an entry in /proc/self/pagemap that is set if the page has memory."""
HEAP: Final = {-3: 32 << 20, -1: 64 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
"""glibc's allocator parameters in bytes: the maximum size of a chunk on the heap, and the free space at the heap's end
from which glibc returns it to the kernel. The engine allocates KV blocks of 1.6 MB and conversations of 14 MB there. By
default, glibc requests their pages from the kernel each time, which doubles the time of a fetch (`make bench
BENCH=blocks`, with and without these values as MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_). They are set after
loading: with them, the temporary memory of loading would lie on the heap too, and would not be returned."""
_libc: Final = ctypes.CDLL(None)


def settle() -> None:
    """Return the memory left over from loading to the kernel, and make glibc retain memory from now on.

    Takes 0.15 s per GB of cells. No other thread may run meanwhile.
    """
    with suppress(AttributeError):  # the libc is not glibc
        _libc.malloc_trim(0)  # returns freed chunks between those of the vocabulary
        for parameter, size in HEAP.items():
            _libc.mallopt(parameter, size)
    with suppress(OSError):  # the kernel does not provide the page map: no memory is returned
        _release_zero_pages()


def _release_zero_pages() -> None:
    """Return pages of zeros in large anonymous mappings to the kernel. Raises OSError.

    The heap is left out, because Python writes to it.
    """
    for start, end in _mappings():
        for page, pages in _runs(_present(start, end)):
            begin = start + page * mmap.PAGESIZE
            words = (ctypes.c_uint64 * (pages * mmap.PAGESIZE // 8)).from_address(begin)
            zero = np.asarray(np.ctypeslib.as_array(words).reshape(pages, -1).max(axis=1) == 0)
            for first, length in _runs(zero):
                address = ctypes.c_void_p(begin + first * mmap.PAGESIZE)
                _libc.madvise(address, ctypes.c_size_t(length * mmap.PAGESIZE), mmap.MADV_DONTNEED)


def _mappings() -> list[tuple[int, int]]:
    """Return the addresses of the large anonymous mappings of this process, as (start, end). Raises OSError."""
    fields = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    unnamed = [field[0].split("-") for field in fields if len(field) == 5 and field[1] == "rw-p"]
    ranges = [(int(start, 16), int(end, 16)) for start, end in unnamed]
    return [(start, end) for start, end in ranges if end - start >= LARGE]


def _present(start: int, end: int) -> NDArray[np.bool_]:
    """Return for each page of an address range whether it has memory. Raises OSError."""
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(start // mmap.PAGESIZE * 8)
        entries = np.frombuffer(file.read((end - start) // mmap.PAGESIZE * 8), np.uint64)
    return (entries & PRESENT).astype(np.bool_)


def _runs(pages: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the start and length of each run of true values."""
    edges = np.flatnonzero(np.diff(pages, prepend=False, append=False))
    for first, last in edges.reshape(-1, 2).tolist():
        yield first, last - first
