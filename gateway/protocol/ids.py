"""Ids of responses and of the items in their output. The id of an item leads to the response that has it.

An id is a prefix and 32 hexadecimal digits. A response has 28 random digits and a checksum of them; its items have the
same random digits, and the checksum combined with their number.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

RANDOM_DIGITS: Final = 28
_ITEM: Final = re.compile(rf"[a-z]+_([0-9a-f]{{{RANDOM_DIGITS}}})[0-9a-f]{{4}}\Z")


def response_id(random: str) -> str:
    """Return the id of a response from RANDOM_DIGITS random hexadecimal digits."""
    return f"resp_{random}{_checksum(random):04x}"


def response_of(item_id: str) -> str | None:
    """Return the id of the response whose output has the item, if there is one; None if this is no id of an item."""
    found = _ITEM.match(item_id)
    return None if found is None else response_id(found[1])


class ItemIds:
    """Makes the ids of one response's items. Call it with a prefix."""

    def __init__(self, response: str) -> None:
        """`response` is an id from `response_id`."""
        self._random = response.removeprefix("resp_")[:RANDOM_DIGITS]
        self._count = 0

    def __call__(self, prefix: str) -> str:
        """Return a new id."""
        self._count += 1
        return f"{prefix}_{self._random}{_checksum(self._random) ^ (self._count & 0xFFFF):04x}"


def _checksum(random: str) -> int:
    return int.from_bytes(hashlib.sha256(random.encode()).digest()[:2])
