"""Whether a folder's file system supports file locks, without which SQLite refuses every file as locked."""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path


def supports_locks(folder: Path) -> bool:
    """Return False where a lock cannot be taken, as on NFS without a lock service. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
