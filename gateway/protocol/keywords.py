"""The keywords of one JSON schema: whether their values have the right types, and what it costs to look at them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.protocol.combining import KINDS

MAX_PROPERTIES: Final = 128
MAX_COUNT: Final = 512
"""Of a length, of items, of alternatives, and of an enumeration's values."""
MAX_WORK: Final = 20_000
"""Values and sub-schemas that are looked at for one grammar, each as often as it is: what references multiply is
counted again. The most that fits takes about 50 ms."""
TEXT_UNIT: Final = 64
"""Characters of text that cost as much as one value."""

# Keywords that no grammar of ours holds a model to.
_UNHELD: Final = frozenset(
    ("multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "patternProperties", "dependentRequired",
     "dependentSchemas", "dependencies", "additionalItems", "not", "if", "then", "else", "unevaluatedItems",
     "$dynamicRef", "$recursiveRef", "contentSchema")
)  # fmt: skip
_EMPTY: Final = {"uniqueItems": False, "multipleOf": 1, "minContains": 0}
"""Values by which such a keyword asks for nothing; `multipleOf` only of what is whole."""

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
    "$ref": (_is_reference, "only what lies in the schema itself (`#/…`) can be referred to"),
    "properties": (lambda value: isinstance(value, dict), "it must be an object of schemas"),
    "required": (_are_names, "it must list names"),
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
        if name in _UNHELD and not (name in _EMPTY and value == _EMPTY[name]):
            return name, f"`{name}` cannot be held to; leave it out, and check what comes"
        is_right, text = _SHAPES.get(name, (None, ""))
        if is_right is not None and not is_right(value):
            return name, text
    if schema.get("multipleOf") == 1 and schema.get("type") != "integer":
        return "multipleOf", 'say `"type": "integer"` instead'
    if len(schema.get("properties", ())) > MAX_PROPERTIES:
        return "properties", f"there are more than {MAX_PROPERTIES} properties"
    return None


def weight(schema: Mapping[str, Any]) -> int:
    """Return what it costs to look at `schema` once, in values: sub-schemas count one each, listed values in full."""
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
    """What may be spent on all schemas of one request."""

    def __init__(self, most: int = MAX_WORK) -> None:
        """`most` is in values, as `weight` counts them."""
        self._left = most

    def spend(self, cost: int) -> bool:
        """Take `cost`; return False once more was taken than there is."""
        self._left -= cost
        return self._left >= 0
