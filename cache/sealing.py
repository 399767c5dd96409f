"""Sealing at rest: what a store holds says nothing to who reads it, and what was tampered with does not open."""

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
    """AES-256-GCM with a fresh random nonce each time: good for 2³² sealings under one key."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Seal under the first of `keys` (32 bytes each) and open under any."""
        self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, data: bytes, name: bytes) -> bytes:
        """`data` as only the holder of the key can read it, bound to `name`: under another it does not open."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return b"".join((VERSION, nonce, self._ciphers[0].encrypt(nonce, data, VERSION + name)))

    def open(self, sealed: bytes, name: bytes) -> bytes | None:
        """The data, or None when it was not sealed here under this name, or has changed by a bit."""
        if len(sealed) < OVERHEAD or sealed[:1] != VERSION:
            return None
        nonce, body = sealed[1 : 1 + NONCE_BYTES], memoryview(sealed)[1 + NONCE_BYTES :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, body, VERSION + name)
            except InvalidTag:
                continue
        return None
