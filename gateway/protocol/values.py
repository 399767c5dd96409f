"""Limits on the arbitrary JSON values in a request: schemas, and the arguments of calls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from gateway.errors import InvalidRequestError

MAX_VALUES: Final = 20_000
"""Maximum values in all schemas of one request: as Python objects they take about 2 MiB, and 10 ms to visit."""
MAX_NESTED: Final = 64
"""Maximum nesting of one value. Templates and `json` recurse, and Python's recursion limit is 1 000."""
_INTEGERS: Final = (-(1 << 63), (1 << 64) - 1)
"""Range of integers in MessagePack, the format of stored turns."""


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


def fits(value: Any) -> bool:
    """Return whether `check_values` accepts `value`."""
    try:
        check_values(value, "")
    except InvalidRequestError:
        return False
    return True


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
