"""Subschemas of JSON schemas: visiting and changing them, and finding the keyword that an error is about."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import unquote

Schema = dict[str, Any]

_SUBSCHEMAS: Final = frozenset(
    ("items", "additionalItems", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "propertyNames",
     "contains", "not", "if", "then", "else", "allOf", "anyOf", "oneOf", "prefixItems")
)  # fmt: skip
"""Keywords whose value is a schema or a list of schemas."""
_DEFINITIONS: Final = frozenset(("$defs", "definitions"))
_NAMED_SUBSCHEMAS: Final = _DEFINITIONS | {"properties", "patternProperties", "dependentSchemas"}
"""Keywords whose value is an object of schemas."""
_VALUES: Final = frozenset(("const", "default"))
"""Keywords for which null is a value. Some clients send other keywords as null where they mean none."""
_WITHOUT_EFFECT: Final = (("uniqueItems", False), ("minContains", 0))
_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
"""Characters that JSON writes as their code only."""
_EXACT: Final = ("multipleOf", "const", "enum", "properties", "required")
"""Keywords whose integers llguidance rounds to doubles, or from whose texts it leaves out characters."""
_MINIMA: Final = frozenset(("minimum", "exclusiveMinimum"))
_MAXIMA: Final = frozenset(("maximum", "exclusiveMaximum"))
_LARGEST: Final = (1 << 63) - 1
"""The largest integer that llguidance accepts."""
FORMATS: Final = frozenset(
    ("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
     "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex")
)  # fmt: skip
"""The formats of JSON Schema. The standard requires that others have no effect."""
_COMBINING: Final = ("allOf", "oneOf", "not", "if", "dependentSchemas", "contains", "$dynamicRef")
"""Keywords under which a closed object would change which answers are valid."""
_OPEN: Final = ("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames")
"""Keywords that mention properties without declaring them."""
_SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "regex": ("pattern", "patternProperties"), "lookarounds": ("pattern", "patternProperties"), "Pointer": ("$ref",),
    "Resource": ("$ref",), "URI": ("$id",), "types": ("type",), "min": ("minProperties",), "range": ("minimum",),
}  # fmt: skip
"""Words of llguidance's messages for keywords."""
_UNIMPLEMENTED: Final = "Unimplemented keys"
"""Start of llguidance's message that names all keywords that it does not know."""


def subschemas(schema: Any, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield each subschema with its path, `schema` itself first."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for where, inner in _members(schema, path):
        yield from subschemas(inner, where)


def normalized(schema: Schema) -> Schema:
    """Return the schema without keywords that have no effect, and with `anyOf` for tagged unions."""
    return _changed(schema, lambda subschema: _tagged(_normalized(subschema), schema))


def closed(schema: Schema) -> Schema:
    """Return the schema with objects that have no undeclared properties, unless it mentions such properties.

    Small models would add properties until their token limit. llama.cpp's converter closes objects, too.
    """
    return _changed(schema, _closed) if all(_can_be_closed(inner) for _, inner in subschemas(schema)) else schema


def without(schema: Schema, keyword: str, remove: Callable[[Schema], bool]) -> Schema:
    """Return the schema without `keyword` in those subschemas for which `remove` returns True."""

    def change(subschema: Schema) -> Schema:
        if keyword not in subschema or not remove(subschema):
            return subschema
        return {name: value for name, value in subschema.items() if name != keyword}

    return _changed(schema, change)


def blamed(message: str, schema: Schema) -> list[str]:
    """Return the keywords of `schema` that an error or warning of llguidance is about; empty if it names none."""
    used = {name for _, subschema in subschemas(schema) for name in subschema} - _DEFINITIONS
    words = [name for word in re.findall(r"\$?\w+", message) for name in _SYNONYMS.get(word, (word,))]
    found = list(dict.fromkeys(word for word in words if word in used))
    return found if message.startswith(_UNIMPLEMENTED) else found[:1]


def places(schema: Schema, keyword: str, message: str) -> list[str]:
    """Return the paths of `keyword` in `schema` that `message` is about."""
    found = [(f"{path}.{keyword}", inner[keyword]) for path, inner in subschemas(schema) if keyword in inner]
    if message.startswith(_UNIMPLEMENTED):
        return [path for path, _ in found]
    quoted = (path for path, value in found if isinstance(value, str) and value in message)
    return [next(quoted, found[0][0])]


def has_control_characters(value: Any) -> bool:
    """Return whether a text in `value` has characters that JSON writes as the code of a character."""
    return any(isinstance(leaf, str) and _CONTROL_CHARACTERS.search(leaf) for leaf in _leaves(value))


def inexact(schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield the path of each keyword that llguidance 1.9.1 enforces inexactly and without an error, with the reason."""
    for path, subschema in subschemas(schema):
        least = subschema.get("minProperties")
        if isinstance(least, int) and least > len(set(names(subschema.get("required")))) + 1:
            yield f"{path}.minProperties", "two undeclared properties could have the same name"
        for name in _EXACT:
            value = subschema.get(name)
            texts = list(value) if name == "properties" and isinstance(value, dict) else value
            if has_control_characters(texts):
                yield f"{path}.{name}", "it has control characters"
            if any(isinstance(leaf, int) and int(float(leaf)) != leaf for leaf in _leaves(texts)):
                yield f"{path}.{name}", "the number has more digits than a double"


def endless(schema: Schema) -> list[tuple[str, str]]:
    """Return the path of each reference that every valid value would contain again, and the reason to refuse it."""
    waiting = {id(inner): (path, inner) for path, inner in subschemas(schema)}
    before = len(waiting) + 1
    while len(waiting) < before:
        before = len(waiting)
        for key, (_, inner) in reversed(list(waiting.items())):
            needed, choices = _needed(inner, schema), inner.get("anyOf", inner.get("oneOf"))
            has_choice = not isinstance(choices, list) or any(id(choice) not in waiting for choice in choices)
            if has_choice and not any(id(value) in waiting for value in needed):
                del waiting[key]
    reason = "every valid value would contain itself"
    return [(f"{path}.$ref", reason) for path, inner in waiting.values() if "$ref" in inner]


def _needed(schema: Schema, root: Schema) -> list[Any]:
    """Return the schemas of which a valid value needs one each: those of references, parts and required properties."""
    properties = dictionary(schema.get("properties"))
    needed = [properties[name] for name in names(schema.get("required")) if name in properties]
    parts = schema.get("allOf")
    reference = [resolved(schema, root)] if str(schema.get("$ref")).startswith("#") else []
    return [*needed, *(parts if isinstance(parts, list) else []), *reference]


def _normalized(schema: Schema) -> Schema:
    return {
        name: _double(value, name) if name in _MINIMA | _MAXIMA else value
        for name, value in schema.items()
        if (value is not None or name in _VALUES)
        and (name, value) not in _WITHOUT_EFFECT
        and not (name == "format" and isinstance(value, str) and value not in FORMATS)
        and not (name == "$schema" and "json-schema.org" not in str(value))  # llguidance would look it up
        and name != "x-guidance"  # llguidance's own options
    }


def _tagged(schema: Schema, root: Schema) -> Schema:
    """Return the schema with `anyOf` for a `oneOf` of objects that a required property tells apart.

    llguidance resolves no references in `oneOf`, and pydantic's tagged unions consist of references.
    """
    branches = schema.get("oneOf")
    if "anyOf" in schema or not isinstance(branches, list):
        return schema
    if not _are_tagged([resolved(branch, root) for branch in branches]):
        return schema
    return {("anyOf" if name == "oneOf" else name): value for name, value in schema.items()}


def _are_tagged(branches: list[Schema]) -> bool:
    """Return whether all `branches` are objects that require a property, with another text in each of them."""
    for name in names(branches[0].get("required")) if branches else ():
        tags = [_constant(dictionary(branch.get("properties")).get(name)) for branch in branches]
        required = all(branch.get("type") == "object" and name in names(branch.get("required")) for branch in branches)
        if required and None not in tags and len(set(tags)) == len(tags):
            return True
    return False


def _can_be_closed(schema: Schema) -> bool:
    """Return whether closing objects keeps every answer valid: no schema is combined with another one."""
    combined = not schema.keys().isdisjoint(_COMBINING)
    return not combined and ("properties" not in schema or schema.keys().isdisjoint(("anyOf", "$ref")))


def _closed(schema: Schema) -> Schema:
    """Return the schema of an object without undeclared properties, if it needs none."""
    properties = dictionary(schema.get("properties"))
    if not properties or not schema.keys().isdisjoint(_OPEN):
        return schema
    least = schema.get("minProperties")
    is_enough = not isinstance(least, int) or least <= len(properties)
    is_closed = is_enough and set(names(schema.get("required"))) <= set(properties)
    return {**schema, "additionalProperties": False} if is_closed else schema


def _leaves(value: Any) -> Iterator[Any]:
    """Yield each name and each value in `value` that is neither an object nor an array."""
    if isinstance(value, dict):
        yield from value
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if members is None:
        yield value
        return
    for member in members:
        yield from _leaves(member)


def _double(value: Any, keyword: str) -> Any:
    """Return the bound of `keyword` as a double, as llguidance reads it, rounded so that the range does not grow."""
    if type(value) is not int or value >= _LARGEST:
        return value
    double = max(int(float(value)), 1024 - _LARGEST)  # its range of integers must not begin with -2⁶³
    grows = double < value if keyword in _MINIMA else double > value
    return int(math.nextafter(double, math.inf if keyword in _MINIMA else -math.inf)) if grows else double


def names(value: Any) -> list[str]:
    """Return the texts in `value`, if it is a list."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def dictionary(value: Any) -> dict[str, Any]:
    """Return `value` if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def _constant(schema: Any) -> str | None:
    """Return the text that is a schema's only value, or None."""
    known = dictionary(schema)
    values = [known["const"]] if "const" in known else known.get("enum")
    return values[0] if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str) else None


def resolved(schema: Any, root: Schema) -> Schema:
    """Return the schema that `schema` refers to, or itself if it is no reference within `root`."""
    reference = dictionary(schema).get("$ref")
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return dictionary(schema)
    found: Any = root
    for part in reference.split("/")[1:]:
        found = dictionary(found).get(unquote(part).replace("~1", "/").replace("~0", "~"))
    return dictionary(found)


def _changed(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """Return a copy of `schema` in which `change` has been applied to each subschema."""
    changed = copy.deepcopy(schema)
    for _, inner in subschemas(changed):
        new = change(inner)
        if new is not inner:
            inner.clear()
            inner.update(new)
    return changed


def _members(schema: Schema, path: str) -> Iterator[tuple[str, Any]]:
    for name, value in schema.items():
        where = f"{path}.{name}"
        if name in _NAMED_SUBSCHEMAS and isinstance(value, dict):
            yield from ((f"{where}.{key[:80]}", inner) for key, inner in value.items())
        elif name in _SUBSCHEMAS and isinstance(value, list):
            yield from ((f"{where}[{i}]", inner) for i, inner in enumerate(value))
        elif name in _SUBSCHEMAS:
            yield where, value
