"""The keys that seal stored data: the newest key seals, older keys can still open."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cache.errors import KeyMismatchError, StoreError

SECRET_BYTES: Final = 32
_SEPARATORS: Final = re.compile(r"[\s,]+")


class KeyRing:
    """Keys, the newest first. Each is written as `smk_` and 43 characters, separated by white space or commas."""

    PREFIX: Final = "smk_"

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Create a ring of `keys`, 32 random bytes each."""
        if not keys or any(len(key) != SECRET_BYTES for key in keys):
            raise ValueError(f"a key must have {SECRET_BYTES} bytes")
        self._keys = tuple(keys)

    @classmethod
    def new(cls) -> Self:
        """Return a ring of one new random key."""
        return cls([secrets.token_bytes(SECRET_BYTES)])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the ring written as `text`. Raises ValueError, whose message never quotes `text`."""
        return cls([_decode(word) for word in _SEPARATORS.split(text.strip()) if word])

    @classmethod
    def load(cls, where: str | Path) -> Self:
        """Return the ring written as `where`, or that of the file `where`, created if missing. Raises StoreError."""
        try:
            if isinstance(where, str) and where.startswith(cls.PREFIX):
                return cls.parse(where)
            return cls.parse(_read_or_create(Path(where)))
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            name = "the key" if isinstance(where, str) and where.startswith(cls.PREFIX) else where
            raise StoreError(f"cache_key: {name} can't be used: {reason}") from error

    def derive(self, purpose: str) -> list[bytes]:
        """Return keys of 32 bytes for one purpose, the newest first. They reveal no keys of other purposes."""
        return [HKDF(SHA256(), 32, salt=None, info=f"samovar {purpose}".encode()).derive(key) for key in self._keys]

    @property
    def fingerprints(self) -> list[str]:
        """Public identifier of each key, the newest first: 16 hexadecimal digits."""
        return [key.hex()[:16] for key in self.derive("fingerprint")]

    @property
    def text(self) -> str:
        """The ring in the format of its file, one key per line."""
        return "".join(f"{_encode(key)}\n" for key in self._keys)

    def check(self, found: str | None, where: str) -> bool:
        """Return whether the fingerprint stored with the data of `where`, now `found`, has to be written.

        Raises KeyMismatchError if the data was sealed under a key that is not in the ring.
        """
        if found is not None and found not in self.fingerprints:
            raise KeyMismatchError(
                f"cache_key: {where} was sealed under the key {found}, but the current key is {self.fingerprints[0]}: "
                "restore the old key, or add it below the new one, or delete the data"
            )
        return found != self.fingerprints[0]

    def __repr__(self) -> str:
        """Return the fingerprints only: a log or a traceback must not contain a key."""
        return f"KeyRing({', '.join(self.fingerprints)})"


def _encode(key: bytes) -> str:
    return KeyRing.PREFIX + base64.urlsafe_b64encode(key).rstrip(b"=").decode()


def _decode(word: str) -> bytes:
    text = word.removeprefix(KeyRing.PREFIX)
    with contextlib.suppress(binascii.Error, UnicodeEncodeError):
        key = base64.b64decode(text.encode("ascii") + b"=", altchars=b"-_", validate=True)
        if text != word and len(key) == SECRET_BYTES:
            return key
    raise ValueError(f"a key must be {KeyRing.PREFIX} and 43 characters A–Z a–z 0–9 _ -")


def _read_or_create(path: Path) -> str:
    """Return the file's text; create a missing file atomically. Of two concurrent creators the first wins."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mkstemp's mode is 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(KeyRing.new().text)
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
    return path.read_text("utf-8")
