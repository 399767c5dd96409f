"""The secrets under which this house seals what it stores: the newest seals, the older ones still open."""

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
    """Secrets, the newest first. Their text is `smk_` and 43 characters each, with blanks or commas between."""

    PREFIX: Final = "smk_"

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Hold `keys`, 32 random bytes each."""
        if not keys or any(len(key) != SECRET_BYTES for key in keys):
            raise ValueError(f"a key is {SECRET_BYTES} bytes")
        self._keys = tuple(keys)

    @classmethod
    def new(cls) -> Self:
        """A ring of one new key."""
        return cls([secrets.token_bytes(SECRET_BYTES)])

    @classmethod
    def parse(cls, text: str) -> Self:
        """The ring that `text` writes. Raises ValueError, which never holds the text."""
        return cls([_decode(word) for word in _SEPARATORS.split(text.strip()) if word])

    @classmethod
    def load(cls, where: str | Path) -> Self:
        """The keys themselves, or those of the file `where`, which is made when it is missing. Raises StoreError."""
        try:
            if isinstance(where, str) and where.startswith(cls.PREFIX):
                return cls.parse(where)
            return cls.parse(_read_or_make(Path(where)))
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            name = "the key" if isinstance(where, str) and where.startswith(cls.PREFIX) else where
            raise StoreError(f"cache_key: {name} can't be used: {reason}") from error

    def derive(self, purpose: str) -> list[bytes]:
        """Keys of 32 bytes for one purpose, the newest first. No other purpose's can be reckoned from them."""
        return [HKDF(SHA256(), 32, salt=None, info=f"samovar {purpose}".encode()).derive(key) for key in self._keys]

    @property
    def fingerprints(self) -> list[str]:
        """What may be told of each key, the newest first: 16 hex digits by which it is known again."""
        return [key.hex()[:16] for key in self.derive("fingerprint")]

    @property
    def text(self) -> str:
        """The ring as its file holds it, one key a line."""
        return "".join(f"{_encode(key)}\n" for key in self._keys)

    def check(self, found: str | None, where: str) -> bool:
        """Whether `found`, the fingerprint beside the data of `where`, has to be written (anew).

        Raises KeyMismatchError when the data was sealed under a key that is not in the ring.
        """
        if found is not None and found not in self.fingerprints:
            raise KeyMismatchError(
                f"cache_key: {where} was sealed under the key {found}, and this one is {self.fingerprints[0]}: put "
                "that key back, or add it below the new one, or remove the data to begin anew"
            )
        return found != self.fingerprints[0]

    def __repr__(self) -> str:
        """The fingerprints: a log or a traceback must not hold a secret."""
        return f"KeyRing({', '.join(self.fingerprints)})"


def _encode(key: bytes) -> str:
    return KeyRing.PREFIX + base64.urlsafe_b64encode(key).rstrip(b"=").decode()


def _decode(word: str) -> bytes:
    text = word.removeprefix(KeyRing.PREFIX)
    with contextlib.suppress(binascii.Error, UnicodeEncodeError):
        key = base64.b64decode(text.encode("ascii") + b"=", altchars=b"-_", validate=True)
        if text != word and len(key) == SECRET_BYTES:
            return key
    raise ValueError(f"a key is {KeyRing.PREFIX} and 43 characters A–Z a–z 0–9 _ -")


def _read_or_make(path: Path) -> str:
    """The file's text. A new file appears whole or not at all, and of two that make it at once the first wins."""
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
