"""What a model file is told by: its contents' digest, and marks that change when somebody writes to it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from engine.errors import ModelLoadError


class Mark(NamedTuple):
    """As long as these stay the same, so does the content."""

    size: int
    changed_ns: int
    inode: int


def mark(path: Path) -> Mark:
    """A file's marks now. Raises OSError."""
    stat = path.stat()
    return Mark(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def require_same(path: Path, before: Mark | None, was: object) -> None:
    """Refuse another model than the one whose marks and digest these are: its KV would be taken for that one's.

    Raises ModelLoadError.
    """
    with suppress(OSError):  # what cannot be read cannot be loaded either
        if before not in (None, mark(path)) and digest(path) != was:
            raise ModelLoadError(f"{path.name} is another model than when the server started: restart it")


def digest(path: Path) -> str:
    """Hexadecimal SHA-256; half a gigabyte takes a third of a second. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
