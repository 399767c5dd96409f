"""What a model file is told by: its contents' digest, and marks that change when somebody writes to it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple


class Mark(NamedTuple):
    """As long as these stay the same, so does the content."""

    size: int
    changed_ns: int
    inode: int


def mark(path: Path) -> Mark:
    """A file's marks now. Raises OSError."""
    stat = path.stat()
    return Mark(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def digest(path: Path) -> str:
    """Hexadecimal SHA-256; half a gigabyte takes a third of a second. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
