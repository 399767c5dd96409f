"""Plain words for msgspec's messages about values that do not have the declared type."""

from __future__ import annotations

import re
from typing import Final

_TYPES: Final = {
    "str": "a string", "int": "an integer", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "an object", "null": "null",
}  # fmt: skip
_UNITS: Final = {"str": "character", "array": "element", "object": "field"}
_BOUNDS: Final = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
_LENGTH: Final = re.compile(r"Expected `(\w+)` of length ([<>]=) (\d+)")
_RANGE: Final = re.compile(r"Expected `\w+` ([<>]=?) (\S+)")
_PATTERN: Final = re.compile(r"Expected `str` matching regex '\^?(.*?)(?:\\\\Z|\$)?'")
_KIND: Final = re.compile(r"Expected `([^`]+)`(?:, got `([^`]+)`)?( of a key)?")
_CHOICE: Final = re.compile(r"Invalid (?:enum )?value '?(.*?)'?$")
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")


def plain(complaint: str) -> str:
    """Return what a value must be; an unknown message stays as it is."""
    if found := _LENGTH.match(complaint):
        kind, bound, number = found.groups()
        plural = "" if number == "1" else "s"
        return f"must have {_BOUNDS[bound]} {number} {_UNITS.get(kind, 'element')}{plural}"
    if found := _RANGE.match(complaint):
        return f"must be {_BOUNDS[found[1]]} {found[2].removesuffix('.0')}"
    if found := _PATTERN.match(complaint):
        return f"must match the pattern {found[1]}"
    if found := _MISSING.match(complaint):
        return f"the field `{found[1]}` is missing"
    if found := _CHOICE.match(complaint):
        return f"`{found[1]}` is not one of the supported values"
    return _of_kind(complaint)


def _of_kind(complaint: str) -> str:
    found = _KIND.match(complaint)
    if found is None:
        return complaint
    kinds, got, of_key = found.groups()
    wanted = [_TYPES.get(kind, kind) for kind in kinds.split(" | ") if kind != "null"] or ["null"]
    actual = f", not {_TYPES.get(got, got)}" if got else ""
    return f"{'each key ' if of_key else ''}must be {' or '.join(wanted)}{actual}"
