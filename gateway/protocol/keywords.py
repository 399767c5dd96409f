"""Validation of the keywords of one JSON schema, and the cost of processing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.protocol.combining import KINDS

MAX_PROPERTIES: Final = 128
"""Maximum properties of one schema."""
MAX_COUNT: Final = 512
"""Maximum of a length, and of the numbers of items, alternatives and enumerated values."""
MAX_WORK: Final = 20_000
"""Maximum values and sub-schemas processed for one grammar. One that references repeat counts each time. The maximum
takes about 50 ms."""
TEXT_UNIT: Final = 64
"""Characters of text that cost as much as one value."""

# Keywords that the grammar cannot enforce.
_UNENFORCED: Final = frozenset(
    ("multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "patternProperties", "dependentRequired",
     "dependentSchemas", "dependencies", "additionalItems", "not", "if", "then", "else", "unevaluatedItems",
     "$dynamicRef", "$recursiveRef", "contentSchema")
)  # fmt: skip
_EMPTY: Final = {"uniqueItems": False, "multipleOf": 1, "minContains": 0}
"""Values with which such a keyword has no effect; for `multipleOf`, only on integers."""

Check = Callable[[Any], bool]


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return 1 <= len(names) <= MAX_COUNT and all(isinstance(name, str) and name in KINDS for name in names)


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("#")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value <= MAX_COUNT)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= MAX_COUNT


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_SCHEMAS: Final[tuple[Check, str]] = (_is_list, f"it must list 1 to {MAX_COUNT} schemas")
_COUNT: Final[tuple[Check, str]] = (_is_count, f"it must be a whole number from 0 to {MAX_COUNT}")
_NUMBER: Final[tuple[Check, str]] = (_is_number, "it must be a number")
_SHAPES: Final[dict[str, tuple[Check, str]]] = {
    "type": (_is_type, f"it must be among {', '.join(KINDS)}"),
    "enum": (_is_list, f"it must list 1 to {MAX_COUNT} values"),
    "$ref": (_is_reference, "it must refer to a place in the schema itself (`#/…`)"),
    "properties": (lambda value: isinstance(value, dict), "it must be an object of schemas"),
    "required": (_are_names, "it must be a list of names"),
    "pattern": (lambda value: isinstance(value, str), "it must be a string"),
    "format": (lambda value: value is None or isinstance(value, str), "it must be a string"),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _SCHEMAS),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        _COUNT,
    ),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER),
}


def problem(schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first keyword whose value is wrong or cannot be enforced, and what is wrong; None if all are fine."""
    for name, value in schema.items():
        if name in _UNENFORCED and not (name in _EMPTY and value == _EMPTY[name]):
            return name, f"`{name}` cannot be enforced; leave it out, and validate the answer yourself"
        is_right, text = _SHAPES.get(name, (None, ""))
        if is_right is not None and not is_right(value):
            return name, text
    if schema.get("multipleOf") == 1 and schema.get("type") != "integer":
        return "multipleOf", 'use `"type": "integer"` instead'
    if len(schema.get("properties", ())) > MAX_PROPERTIES:
        return "properties", f"a schema has at most {MAX_PROPERTIES} properties"
    return None


def weight(schema: Mapping[str, Any]) -> int:
    """Return the cost of processing `schema` once, in values; a sub-schema counts as one, listed values in full."""
    deep = ("enum", "const", "required", "type", "pattern", "$ref")
    return 1 + sum(size(value) if name in deep else _shallow(value) for name, value in schema.items())


def size(value: Any) -> int:
    """Return how many values `value` consists of; TEXT_UNIT characters of text count as one more."""
    total, waiting = 0, [value]
    while waiting:
        at = waiting.pop()
        total += 1
        if isinstance(at, str):
            total += len(at) // TEXT_UNIT
        elif isinstance(at, list):
            waiting += at
        elif isinstance(at, dict):
            total += sum(len(name) // TEXT_UNIT for name in at)
            waiting += at.values()
    return total


def _shallow(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(len(name) // TEXT_UNIT for name in value)
    return 1 + len(value) if isinstance(value, list) else 1


class Budget:
    """The processing budget for all schemas of one request."""

    def __init__(self, most: int = MAX_WORK) -> None:
        """`most` is in values, as `weight` counts them."""
        self._left = most

    def spend(self, cost: int) -> bool:
        """Subtract `cost`; return False if the budget is exceeded."""
        self._left -= cost
        return self._left >= 0
