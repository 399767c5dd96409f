"""A store in memory, shared by all processes of one gateway and gone with it.

It is the SQLite store in a private folder of a memory file system: the engines need no server to ask, and a fetch
costs the same copy as one from anywhere else. The folder is locked by its owner for as long as it lives, so whoever
comes next can tell what a killed one has left behind, and removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cache.sqlite import SqliteStore

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the folder made in it is private
PREFIX: Final = "samovar-memory-"
SHARE: Final = 0.8
"""Of the file system's free room at most: a container's /dev/shm often has no more than 64 MiB."""


class SharedMemoryStore(SqliteStore):
    """See Store: what an engine opens of its gateway's memory."""

    backend = "memory"

    def __init__(self, path: Path, *, ttl: float, max_bytes: int) -> None:
        """Share the store in `path`, which another process owns."""
        super().__init__(path, ttl=ttl, max_bytes=max_bytes, durable=False)

    @property
    def url(self) -> str:
        """What another process opens to share it."""
        return f"memory://{quote(str(self._path))}"


class MemoryStore(SharedMemoryStore):
    """See Store: the owner's."""

    def __init__(self, *, ttl: float, max_bytes: int, parent: Path | None = None) -> None:
        """Make the folder in `parent` (shared memory, else where temporary files go). Raises OSError."""
        parent = parent or (SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir()))
        _sweep(parent)
        self._folder, self._lock = _make(parent)
        room = int(shutil.disk_usage(parent).free * SHARE)
        super().__init__(self._folder / "blocks.db", ttl=ttl, max_bytes=min(max_bytes, room))

    def close(self) -> None:
        """Close and remove it, as far as this process is concerned: others go on until they close theirs."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


def _make(parent: Path) -> tuple[Path, int]:
    """A private folder and its lock, which the kernel lets go of when this process ends in whatever way."""
    for _ in range(10):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # who sweeps just now may take the folder for a left one
            lock = os.open(folder / "owner", os.O_CREAT | os.O_RDWR, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_nlink:
                    return folder, lock
            os.close(lock)
    raise OSError(f"{parent}: folders made there go at once")


def _sweep(parent: Path) -> None:
    """Remove the folders whose owners are dead."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
