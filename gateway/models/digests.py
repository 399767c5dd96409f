"""Cached digests of model files: a file's SHA-256 is valid while its size, modification time and inode are the same."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from engine import digest, file_mark
from engine import file_digest as compute_digest
from gateway.config.files import write_private

_FILE: Final = "digests.json"


class _Known(msgspec.Struct, frozen=True):
    size: int
    changed_ns: int
    inode: int
    digest: str


def model_digest(path: Path, state_dir: Path) -> str:
    """Return the digest of a model, including all its shards. Raises OSError."""
    return digest(path, lambda file: file_digest(file, state_dir))


def file_digest(path: Path, state_dir: Path) -> str:
    """Return a file's hexadecimal SHA-256; 500 MB take a third of a second the first time. Raises OSError."""
    path = path.resolve()
    known = _read(state_dir)
    now = file_mark(path)
    found = known.get(str(path))
    if found is not None and (found.size, found.changed_ns, found.inode) == now:
        return found.digest
    new_digest = compute_digest(path)
    # Two gateways that write at the same time lose one entry at worst, which is then computed again.
    with contextlib.suppress(OSError):  # the folder does not exist yet, or is not writable
        write_private(state_dir / _FILE, msgspec.json.encode({**known, str(path): _Known(*now, new_digest)}))
    return new_digest


def _read(state_dir: Path) -> dict[str, _Known]:
    try:
        return msgspec.json.decode((state_dir / _FILE).read_bytes(), type=dict[str, _Known])
    except (OSError, msgspec.MsgspecError):
        return {}
