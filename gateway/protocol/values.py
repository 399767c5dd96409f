"""Checks of values that field types do not express: sizes of JSON, of schemas and of arguments, and stop strings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from gateway.errors import InvalidRequestError

MAX_VALUES: Final = 20_000
"""Maximum values in all schemas of one request: as Python objects they take about 2 MiB, and 10 ms to visit."""
MAX_NESTED: Final = 64
"""Maximum nesting of one value. Templates and `json` recurse, and Python's recursion limit is 1 000."""
MAX_CONTAINERS: Final = 50_000
"""Maximum arrays and objects of one message. 1 MiB has room for 500 000, which take 0.7 s to decode and collect."""
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""A string of a JSON text, or its beginning; possessive, and so linear in time for any text."""
_INTEGERS: Final = (-(1 << 63), (1 << 64) - 1)
"""Range of integers in MessagePack, the format of stored turns."""


def check_stops(stops: Sequence[str]) -> None:
    """Raise InvalidRequestError if a stop string is empty."""
    if not all(stops):
        raise InvalidRequestError("stop: a stop string must not be empty", param="stop")


def check_values(value: Any, path: str, *, most: int = MAX_VALUES) -> int:
    """Return the number of JSON values in `value`, at most `most`; `path` is its place in the request.

    Raises InvalidRequestError that names the place of a value that is too large, too deep or not a JSON number.
    """
    count = 1
    waiting: list[tuple[Any, str, int]] = [(value, path, 1)]
    while waiting:
        at, where, depth = waiting.pop()
        if depth > MAX_NESTED:
            raise _error(where, f"it is nested more than {MAX_NESTED} levels deep")
        for inner, name in _members(at):
            count += 1
            if count > most:
                raise _error(path, f"a request has at most {MAX_VALUES} values in its schemas; shorten it")
            if isinstance(inner, dict | list):
                waiting.append((inner, where + name, depth + 1))
            elif _is_invalid_number(inner):
                raise _error(where + name, "the number does not fit into 64 bits")
    return count


def has_many_containers(data: bytes) -> bool:
    """Return whether a JSON text has more than MAX_CONTAINERS arrays and objects, before any object is made of it."""
    return _brackets(data) > MAX_CONTAINERS and _brackets(_STRING.sub(b"", data)) > MAX_CONTAINERS


def fits(value: Any) -> bool:
    """Return whether `check_values` accepts `value`."""
    try:
        check_values(value, "")
    except InvalidRequestError:
        return False
    return True


def _brackets(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")


def _members(value: Any) -> Iterator[tuple[Any, str]]:
    """Return each member of `value`, with its path segment."""
    if isinstance(value, dict):
        return ((inner, f".{name[:80]}") for name, inner in value.items())
    if isinstance(value, list):
        return ((inner, f"[{i}]") for i, inner in enumerate(value))
    return iter([(value, "")])


def _is_invalid_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, int) and not _INTEGERS[0] <= value <= _INTEGERS[1]


def _error(path: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: {problem}" if path else problem, param=path or None)
