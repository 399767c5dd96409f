"""Memory that an engine returns to the kernel: unused KV cells, and memory left on the heap by loading."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

CELLS = """
import sys
import mmap, psutil
from pathlib import Path
from engine.llama import Context, Model
from engine.memory import settle

def resident():
    return psutil.Process().memory_info().rss

# Pages with any byte other than zero must not change.
held = mmap.mmap(-1, 64 << 20)
for address in range(0, 64 << 20, 3 << 20):
    held[address + 4095] = 7
before = bytes(held)
model = Model(Path(sys.argv[1]))
empty = resident()
home = Context(model, cells=400_000, sequences=2, threads=1)
made = resident()
settle()
given = resident()
assert bytes(held) == before
for start in range(0, 2048, 256):
    home.decode([(40 + p % 60, p, 0, p == 2047) for p in range(start, start + 256)])
logits = home.logits(255).copy()
untouched = Context(model, cells=4096, sequences=2, threads=1)
for start in range(0, 2048, 256):
    untouched.decode([(40 + p % 60, p, 0, p == 2047) for p in range(start, start + 256)])
assert abs(logits - untouched.logits(255)).max() < 1e-3
home.close()
print(made - empty, given - empty)
"""

HEAP = """
import ctypes, psutil
from engine.memory import settle

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def resident():
    return psutil.Process().memory_info().rss

def fill(size):
    chunk = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(chunk, 7, size)
    return chunk

chunks = [fill(100_000) for _ in range(300)]  # 30 MB, each below glibc's size for separate mappings
for chunk in chunks[:-1]:
    libc.free(chunk)
left = resident()
settle()
settled = resident()
libc.free(fill(14 << 20))
print(left - settled, resident() - settled)
"""


def test_cells_take_memory_only_once_they_are_used(tiny_model: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CELLS, str(tiny_model)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    made, given = map(int, done.stdout.split())
    assert made > 64 << 20
    assert given < made / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc has another heap")
def test_heap_memory_left_by_loading_is_returned_and_that_of_serving_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, timeout=60, check=True)
    given, kept = map(int, done.stdout.split())
    assert given > 25e6
    assert kept > 12e6
