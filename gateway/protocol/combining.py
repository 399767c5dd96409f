"""JSON schemas put together: what all of several say as one schema, and whether two can take the same value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

ANNOTATIONS: Final = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable",
     "discriminator", "$schema", "$id", "$comment", "$defs", "definitions")
)  # fmt: skip
"""Keywords that say nothing about which values fit."""
KINDS: Final = ("object", "array", "string", "number", "integer", "boolean", "null")


_NULLABLE: Final = frozenset(
    ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "maximum", "exclusiveMaximum",
     "maxLength", "maxItems", "maxProperties", "format")
)  # fmt: skip
"""Keywords that some clients send as null where they mean none."""


class ConflictError(Exception):
    """Two schemas speak of the same thing in a way that is not put together here; the text is the keyword."""


def assertions(schema: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """What a schema says of values, but for the keywords `without`."""
    return {
        name: value
        for name, value in schema.items()
        if name not in ANNOTATIONS and name not in without and (value is not None or name not in _NULLABLE)
    }


def joined(schemas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One schema that takes only what all of these take; their keywords have values that `keywords` accepts.

    Raises ConflictError.
    """
    found: dict[str, Any] = {}
    for schema in schemas:
        for one, other in ((found, schema), (schema, found)):
            if one and one.get("additionalProperties", True) not in (True, {}):
                strange = set(_dictionary(other.get("properties"))) - set(_dictionary(one.get("properties")))
                if strange:
                    raise ConflictError("additionalProperties")
        for name, value in assertions(schema).items():
            found[name] = _join(name, found[name], value) if name in found else value
    return found


def tag(schemas: Sequence[Mapping[str, Any]]) -> str | None:
    """A property by which objects of all these schemas are told apart, once it is there."""
    if any(_kinds(schema) != {"object"} for schema in schemas):
        return None
    properties = [_dictionary(schema.get("properties")) for schema in schemas]
    for name in properties[0]:
        described = [inner for each in properties if isinstance(inner := each.get(name), dict)]
        if len(described) == len(properties) and all_apart(described):
            return name
    return None


def all_apart(schemas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is plain that no value fits two of them. Takes time linear in what they list."""
    listed: set[str] = set()
    kinds_of_listed: set[str] = set()
    kinds: set[str] = set()
    for schema in schemas:
        values, own = _values(schema), _kinds(schema)
        if values is not None:
            if values & listed:
                return False
            listed |= values
            kinds_of_listed |= own or set()
        elif own is None or own & kinds:
            return False
        else:
            kinds |= own
    return not kinds & kinds_of_listed


def is_of(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type."""
    match value:
        case bool():
            return kind == "boolean"
        case int() | float():
            return kind == "number" or (kind == "integer" and float(value).is_integer())
        case None:
            return kind == "null"
        case str():
            return kind == "string"
    return kind == ("array" if isinstance(value, list) else "object")


def _join(name: str, one: Any, other: Any) -> Any:
    if name in _JOINS:
        return _JOINS[name](one, other)
    if one == other and type(one) is type(other):
        return one
    raise ConflictError(name)


def _both_properties(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    # By identity: two references to one schema share it, and comparing large ones in depth takes long.
    shared = {
        name: {"allOf": [one[name], other[name]]} for name in one if name in other and one[name] is not other[name]
    }
    return {**one, **other, **shared}


def _both_kinds(one: Any, other: Any) -> list[str]:
    first, second = ([kinds] if isinstance(kinds, str) else [*kinds] for kinds in (one, other))
    found = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
    found += ["integer"] if "integer" in second and "number" in first and "integer" not in found else []
    if not found:
        raise ConflictError("type")
    return found


def _both_values(one: list[Any], other: list[Any]) -> list[Any]:
    texts = {json.dumps(value) for value in other}
    found = [value for value in one if json.dumps(value) in texts]
    if not found:
        raise ConflictError("enum")
    return found


_JOINS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "properties": _both_properties,
    "required": lambda one, other: list(dict.fromkeys([*one, *other])),
    "type": _both_kinds,
    "enum": _both_values,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The only values that fit, as JSON; None when there are others."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return {json.dumps(value, sort_keys=True) for value in values} if isinstance(values, list) else None


def _kinds(schema: Mapping[str, Any]) -> set[str] | None:
    """The types of what fits; None when that is not said."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return {kind for value in values for kind in KINDS if is_of(value, kind)}
    kinds = schema.get("type", "object" if "properties" in schema else None)
    named = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else None
    return named | ({"integer"} if "number" in named else set()) if named else None


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
