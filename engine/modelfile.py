"""Identity of a model: the files that it consists of, their change marks, and the digest of their contents.

A model is one GGUF file, or a split model: shards `NAME-00001-of-00003.gguf` and so on in one folder, of which
llama.cpp gets the path of the first and opens the others by their names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from engine.errors import ModelLoadError

_SHARD: Final = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
"""llama.cpp's own pattern (llama_split_path): it loads no split model whose files have other names."""


class FileMark(NamedTuple):
    """The change marks of one file. While they are unchanged, its content counts as unchanged."""

    size: int
    changed_ns: int
    inode: int


Mark = tuple[FileMark, ...]
"""The marks of all files of a model, the first shard's first."""


@dataclass(frozen=True)
class Shard:
    """The position of a file in a split model, according to its name."""

    prefix: str
    number: int
    """Position, starting at 1."""
    count: int

    def file(self, number: int) -> str:
        """Return the name of shard `number`."""
        return f"{self.prefix}-{number:05}-of-{self.count:05}.gguf"


def shard(path: Path) -> Shard | None:
    """Return the position that the name of `path` states, in a split model of at least two shards, or None."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return None
    found = Shard(match["prefix"], int(match["number"]), int(match["count"]))
    return found if 1 <= found.number <= found.count and found.count > 1 else None


def model_files(path: Path) -> list[Path]:
    """Return all files of the model whose first file is `path`, whether they exist or not.

    A first shard without any other shard counts as a single file, because it may only be named like a shard. If it is a
    shard, llama.cpp reports which shard is missing.
    """
    named = shard(path)
    if named is None or named.number != 1:
        return [path]
    shards = [path, *(path.with_name(named.file(number)) for number in range(2, named.count + 1))]
    return shards if any(file.exists() for file in shards[1:]) else [path]


def model_path(path: Path) -> Path:
    """Return the absolute path by which llama.cpp finds all shards of `path`.

    Links are followed, except from a first shard to a file without the other shards next to it: in a Hugging Face
    cache, the shards are links to files that are named by their digests.
    """
    kept, followed = path.absolute(), path.resolve()
    if shard(path) is None:
        return followed
    return followed if shard(followed) and len(model_files(kept)) < len(model_files(followed)) else kept


def model_size(path: Path) -> int:
    """Return the bytes of all files of a model. Raises OSError."""
    return sum(file.stat().st_size for file in model_files(path))


def file_mark(path: Path) -> FileMark:
    """Return the marks of one file. Raises OSError."""
    stat = path.stat()
    return FileMark(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def mark(path: Path) -> Mark:
    """Return the marks of all files of a model. Raises OSError."""
    return tuple(map(file_mark, model_files(path)))


def require_same(path: Path, before: Mark | None, was: object) -> None:
    """Raise ModelLoadError if the model at `path` no longer has the marks `before` and the digest `was`.

    Otherwise the engine would continue KV that another model computed.
    """
    with suppress(OSError):  # loading the file will report the error
        if before not in (None, mark(path)) and digest(path) != was:
            raise ModelLoadError(f"{path.name} is another model than when the server started: restart it")


def file_digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of one file. Takes a third of a second for 500 MB. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path, of_file: Callable[[Path], str] = file_digest) -> str:
    """Return the digest of a model: the SHA-256 of a single file, or of the list of all shards' SHA-256.

    `of_file` returns the SHA-256 of one file. Raises OSError.
    """
    digests = [of_file(file) for file in model_files(path)]
    if len(digests) == 1:  # must not change: the ids of stored KV blocks depend on it
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
