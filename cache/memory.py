"""A store in memory, shared by all processes of one gateway and deleted when the gateway stops.

It is the SQLite store in a private folder of a memory file system: no server is needed, and a fetch costs one copy, as
from any other store. The owner locks the folder for its lifetime, so that the next owner can recognize and remove the
folder of a killed gateway.
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
"""Largest share of the file system's free space: a container's /dev/shm often has only 64 MiB."""


class SharedMemoryStore(SqliteStore):
    """See Store. An engine opens it to share its gateway's store in memory."""

    backend = "memory"

    def __init__(self, path: Path, *, ttl: float, max_bytes: int) -> None:
        """Share the store in `path`, which another process owns."""
        super().__init__(path, ttl=ttl, max_bytes=max_bytes, durable=False)

    @property
    def url(self) -> str:
        """See Store."""
        return f"memory://{quote(str(self._file.path))}"


class MemoryStore(SharedMemoryStore):
    """See Store. The gateway that owns the store opens it."""

    def __init__(self, *, ttl: float, max_bytes: int, parent: Path | None = None) -> None:
        """Create the folder in `parent` (default: /dev/shm, else the folder for temporary files). Raises OSError."""
        parent = parent or (SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir()))
        _remove_orphans(parent)
        self._folder, self._lock = _create_locked(parent)
        available = int(shutil.disk_usage(parent).free * SHARE)
        super().__init__(self._folder / "blocks.db", ttl=ttl, max_bytes=min(max_bytes, available))

    def close(self) -> None:
        """Close the store and unlink its folder. Other processes can use the open file until they close it."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


def _create_locked(parent: Path) -> tuple[Path, int]:
    """Return a new private folder and its lock, which the kernel releases when this process ends, however it ends."""
    for _ in range(10):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # another process may remove the folder as an orphan
            lock = os.open(folder / "owner", os.O_CREAT | os.O_RDWR, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_nlink:
                    return folder, lock
            os.close(lock)
    raise OSError(f"{parent}: folders created there disappear immediately")


def _remove_orphans(parent: Path) -> None:
    """Remove the folders whose owners have ended."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # it belongs to another user
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
