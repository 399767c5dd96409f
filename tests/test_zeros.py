"""Memory of KV cells that were never used is the kernel's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHILD = """
import sys
import mmap, psutil
from pathlib import Path
from engine.llama import Context, Model
from engine.zeros import give_back

def resident():
    return psutil.Process().memory_info().rss

# What is not zero stays, however little of it a page holds.
held = mmap.mmap(-1, 64 << 20)
for address in range(0, 64 << 20, 3 << 20):
    held[address + 4095] = 7
before = bytes(held)
model = Model(Path(sys.argv[1]))
empty = resident()
home = Context(model, cells=400_000, sequences=2, threads=1)
made = resident()
give_back()
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


def test_cells_take_memory_when_they_are_used_and_not_before(tiny_model: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, str(tiny_model)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    made, given = map(int, done.stdout.split())
    assert made > 64 << 20
    assert given < made / 4
