"""Authenticated encryption at rest: without the key, stored data can be neither read nor altered unnoticed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION: Final = b"\x01"
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
OVERHEAD: Final = len(VERSION) + NONCE_BYTES + TAG_BYTES
"""Bytes that sealing adds."""


class Sealer:
    """AES-256-GCM with a new random nonce per value: safe for 2³² values under one key."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Seal under the first of `keys` (32 bytes each) and open under any."""
        self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, data: bytes, name: bytes) -> bytes:
        """Return `data` encrypted under the first key and bound to `name`: it opens only under the same name."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return b"".join((VERSION, nonce, self._ciphers[0].encrypt(nonce, data, VERSION + name)))

    def open(self, sealed: bytes, name: bytes) -> bytes | None:
        """Return the data, or None if it was sealed under an unknown key or another name, or was altered."""
        if len(sealed) < OVERHEAD or sealed[:1] != VERSION:
            return None
        nonce, body = sealed[1 : 1 + NONCE_BYTES], memoryview(sealed)[1 + NONCE_BYTES :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, body, VERSION + name)
            except InvalidTag:
                continue
        return None
