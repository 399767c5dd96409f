"""A parser of Redis replies that rejects those announcing more elements than any of Samovar's commands returns."""

from __future__ import annotations

import re
from typing import Any, Final

from redis.connection import DefaultParser
from redis.exceptions import InvalidResponse

_HUGE: Final = re.compile(rb"\n[*~>%|]\d{8}")
"""The header of an array of ten million elements or more. hiredis allocates the whole array when it reads the header.

2^31 elements take 16 GiB of address space and block the interpreter for many seconds. A sealed value matches by chance
once in 2^90 bytes.
"""
_HEAD: Final = 16
"""Bytes that contain such a header, also if it is split between two reads."""


class _BoundedReader:
    """hiredis.Reader with a limit on announced elements."""

    def __init__(self, reader: Any) -> None:
        """Wrap `reader`."""
        self._reader = reader
        self._end = b"\n"
        self.gets = reader.gets
        self.has_data = reader.has_data

    def feed(self, data: bytearray, offset: int, length: int) -> None:
        """Parse bytes read from the socket. Raises InvalidResponse."""
        view = memoryview(data)[offset : offset + length]
        if _HUGE.search(self._end + bytes(view[:_HEAD])) or _HUGE.search(view):
            raise InvalidResponse("the reply announces too many elements")
        self._end = (self._end + bytes(view[-_HEAD:]))[-_HEAD:]
        self._reader.feed(data, offset, length)


class BoundedParser(DefaultParser):  # type: ignore[misc, valid-type]  # redis-py chooses it at import
    """redis-py's parser with a limit on the elements that a reply announces."""

    _reader: Any

    def on_connect(self, connection: Any, **kwargs: Any) -> None:
        """Attach the parser to `connection`."""
        super().on_connect(connection, **kwargs)
        self._reader = _BoundedReader(self._reader)
