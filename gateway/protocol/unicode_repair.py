"""Repair of JSON texts that are not quite Unicode: a byte order mark, and halves of characters.

A program that cuts a text between the two halves of an emoji sends a lone surrogate, which no decoder accepts. Without
the repair its user could never continue the conversation.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair, which is one character
    rb"|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|\\.",
    re.DOTALL,
)
_ENCODED: Final = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
"""A surrogate encoded like a character, which UTF-8 forbids. 0xED never continues a character."""


def repaired(data: bytes) -> bytes:
    """Return a JSON text without a leading byte order mark, and with U+FFFD for each lone surrogate."""
    data = data.removeprefix(codecs.BOM_UTF8)
    if b"\xed" in data:
        data = _ENCODED.sub("\ufffd".encode(), data)
    if _SURROGATE.search(data):
        data = _ESCAPE.sub(lambda found: rb"\ufffd" if found["lone"] else found[0], data)
    return data
