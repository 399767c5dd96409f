"""Measures the memory bandwidth of this machine, which bounds how fast one answer is generated.

Each token of one answer reads all weights once. Two machines with the same processor can differ by a factor of two.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

BYTES: Final = 256 << 20
"""Bytes that are read: more than the caches hold, so that most reads come from memory."""
ROUNDS: Final = 5
"""The best round counts: other load on the machine can only make one slower."""


def bandwidth(threads: int) -> float:
    """Return the bytes per second that `threads` threads read together. Takes about 0.3 s and 256 MiB."""
    whole = np.ones(BYTES // 8, np.uint64)
    with ThreadPoolExecutor(threads) as pool:
        parts = np.array_split(whole, threads)
        return max(sum(pool.map(_read, parts)) for _ in range(ROUNDS))


def _read(part: NDArray[np.uint64]) -> float:
    """Return the bytes per second of reading an array once."""
    started = time.perf_counter()
    part.max()  # releases the interpreter lock
    return part.nbytes / (time.perf_counter() - started)
