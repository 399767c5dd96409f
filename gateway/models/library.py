"""The folder of models on this machine, with a record next to each pulled file."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine import shard


class Record(msgspec.Struct, frozen=True):
    """The verified properties of a pulled file."""

    name: str
    repository: str
    revision: str
    """The commit that the hub served."""
    file: str
    size: int
    sha256: str
    licence: str


def default_folder() -> Path:
    """Return the folder `samovar/models` in this user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    try:
        return Path(base).expanduser() / "samovar" / "models"
    except RuntimeError:  # a service user without a home folder
        return Path("/var/lib/samovar/models")


class Library:
    """Model files by name. A folder copied to another machine works there as well."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use `folder`, else this user's default folder. It need not exist."""
        self.folder = folder or default_folder()

    def path(self, file: str) -> Path:
        """Return the path of `file`, whether or not it exists."""
        return self.folder / file

    def record(self, file: str) -> Record | None:
        """Return the record of `file`, or None if there is no readable record."""
        try:
            return msgspec.json.decode(self._record_path(file).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, record: Record) -> None:
        """Store the record of a file atomically."""
        path = self._record_path(record.file)
        draft = path.with_name(f"{path.name}.new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        draft.replace(path)

    def own(self, name: str) -> Path | None:
        """Return the file `name.gguf` of the library, such as a user's own model, or None."""
        path = self.folder / f"{name}.gguf"
        try:
            return path if "/" not in name and path.is_file() else None
        except (OSError, ValueError):  # the name is too long or contains a zero byte
            return None

    def files(self) -> list[Path]:
        """Return the first file of each model of the library."""
        return [path for path in sorted(self.folder.glob("*.gguf")) if not self._is_later_shard(path)]

    def _is_later_shard(self, path: Path) -> bool:
        part = shard(path)
        return part is not None and part.number > 1 and path.with_name(part.file(1)).exists()

    def _record_path(self, file: str) -> Path:
        return self.folder / f"{file}.json"
