"""JSON schemas as grammars: what fits the grammar is JSON that the schema takes.

llama-cpp-python carries a converter, too. It has no bounds, spells what is not ASCII as escapes that no model writes
by itself, and stops at assertions. Schemas come from users: all is bounded here, before a compiler sees it that was
seen to crash on repetitions in the thousands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gateway.errors import InvalidRequestError
from gateway.protocol.grammar import Grammar, literal

MAX_DEPTH: Final = 16
MAX_PROPERTIES: Final = 128
MAX_COUNT: Final = 512
"""Of a length, of items, and of an enumeration's values."""
MAX_REPEATED: Final = 4096
"""All lengths and counts of a schema together: compiled, each one is a rule."""

_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_FORMATS: Final = ("date", "time", "date-time", "uuid")
# What no grammar of ours holds a model to. The prompt tells of it like of the rest; `strict` does not allow that.
_UNHELD: Final = (
    "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems", "contains",
    "minProperties", "maxProperties", "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas",
    "not", "if", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip


class Schema:
    """One schema on its way into a grammar. `param` is where it lies in the request, for what is wrong with it."""

    def __init__(self, grammar: Grammar, root: Any, *, param: str, strict: bool = False) -> None:
        """`strict` refuses what the grammar cannot hold a model to."""
        self._grammar = grammar
        self._root = root
        self._param = param
        self._strict = strict
        self._properties = 0
        self._repeated = 0
        self._references: dict[str, str] = {}
        self._kinds: dict[str, Callable[[Mapping[str, Any], str, int], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
        }

    def rule(self) -> str:
        """The name of the rule for all of it. Raises InvalidRequestError."""
        return self._rule(self._root, "", 1)

    def _error(self, problem: str, path: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self._param}{path}: {problem}", param=self._param + path)

    def _rule(self, schema: Any, path: str, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise self._error(f"it is nested more than {MAX_DEPTH} deep", path)
        if schema is True:
            return self._grammar.common("value")
        if not isinstance(schema, dict):
            raise self._error("a schema is a JSON object", path)
        unheld = next((name for name in _UNHELD if name in schema), None)
        if self._strict and unheld:
            raise self._error(f"`{unheld}` cannot be guaranteed; leave it out, or `strict`", path)
        if "$ref" in schema:
            return self._reference(schema["$ref"], path, depth)
        if "const" in schema or "enum" in schema:
            return self._values(schema, path)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                return self._alternatives(schema[name], f"{path}.{name}", depth)
        if "allOf" in schema:
            return self._rule(self._merged(schema, path), path, depth + 1)
        return self._typed(schema, path, depth)

    def _reference(self, reference: Any, path: str, depth: int) -> str:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise self._error("only what lies in the schema itself (`#/…`) can be referred to", f"{path}.$ref")
        if reference not in self._references:
            # Named before it is looked into: it may refer to itself further down.
            self._references[reference] = name = self._grammar.name()
            self._grammar.define(name, self._rule(self._find(reference, path), path, depth + 1))
        return self._references[reference]

    def _find(self, reference: str, path: str) -> Any:
        found = self._root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise self._error(f"there is no {reference[:80]}", f"{path}.$ref")
            found = found[key]
        return found

    def _values(self, schema: Mapping[str, Any], path: str) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list) or not 1 <= len(values) <= MAX_COUNT:
            raise self._error(f"it must list 1 to {MAX_COUNT} values", f"{path}.enum")
        return self._grammar.rule(" | ".join(literal(json.dumps(value, ensure_ascii=False)) for value in values))

    def _alternatives(self, schemas: Any, path: str, depth: int) -> str:
        if not isinstance(schemas, list) or not 1 <= len(schemas) <= MAX_COUNT:
            raise self._error(f"it must list 1 to {MAX_COUNT} schemas", path)
        return self._either([self._rule(schema, f"{path}[{i}]", depth + 1) for i, schema in enumerate(schemas)])

    def _merged(self, schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The parts of `allOf` as one schema, as far as they speak of different things."""
        merged = {name: value for name, value in schema.items() if name != "allOf"}
        parts = schema["allOf"]
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts) or len(parts) > MAX_COUNT:
            raise self._error("it must list schemas", f"{path}.allOf")
        for part in parts:
            found = self._find(part["$ref"], path) if isinstance(part.get("$ref"), str) else part
            for name, value in found.items() if isinstance(found, dict) else ():
                if name == "properties" and isinstance(value, dict):
                    merged[name] = {**merged.get(name, {}), **value}
                elif name == "required" and isinstance(value, list):
                    merged[name] = [*merged.get(name, []), *value]
                elif merged.setdefault(name, value) != value and name not in ("title", "description", "default"):
                    raise self._error(f"its parts differ about `{name}`", f"{path}.allOf")
        return merged

    def _typed(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        kinds = schema.get("type") or _implied(schema)
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if not all(kind in (*_TYPES, "value") for kind in kinds):
            raise self._error(f"it must be among {', '.join(_TYPES)}", f"{path}.type")
        return self._either(
            [
                self._kinds[kind](schema, path, depth) if kind in self._kinds else self._grammar.common(kind)
                for kind in kinds
            ]
        )

    def _either(self, rules: Sequence[str]) -> str:
        rules = list(dict.fromkeys(rules))
        return rules[0] if len(rules) == 1 else self._grammar.rule(" | ".join(rules))

    def _object(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise self._error("it must be an object of schemas", f"{path}.properties")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._error("it must list names", f"{path}.required")
        if not properties and not required:
            return self._map(schema.get("additionalProperties", True), path, depth)
        # What is required and not described may be anything.
        properties = {**properties, **{name: True for name in required if name not in properties}}
        self._properties += len(properties)
        if self._properties > MAX_PROPERTIES:
            raise self._error(f"there are more than {MAX_PROPERTIES} properties", f"{path}.properties")
        ws = self._grammar.common("ws")
        members = []
        for name, value in properties.items():
            rule = self._rule(value, f"{path}.properties.{name[:80]}", depth + 1)
            key = literal(json.dumps(name, ensure_ascii=False))
            members.append((self._grammar.rule(f'{key} {ws} ":" {ws} {rule} {ws}'), name in required))
        return self._grammar.rule(f'"{{" {ws} {self._members(members)} "}}"')

    def _members(self, members: Sequence[tuple[str, bool]]) -> str:
        """A rule for members in their order, of which only those marked must be there."""
        ws = self._grammar.common("ws")
        first, rest = "", ""
        for member, needed in reversed(members):
            # `first`: none has come yet; `rest`: one has, so that a comma goes before the next.
            begun = f"{member} {rest}".rstrip()
            if needed:
                first = self._grammar.rule(begun)
                rest = self._grammar.rule(f'"," {ws} {begun}')
            else:
                first = self._grammar.rule(f"{begun} | {first}" if first else f"({begun})?")
                rest = self._grammar.rule(f'("," {ws} {member})? {rest}'.rstrip())
        return first

    def _map(self, values: Any, path: str, depth: int) -> str:
        if values is True or values == {}:
            return self._grammar.common("object")
        string, ws = self._grammar.common("string"), self._grammar.common("ws")
        if values is False:
            return self._grammar.rule(f'"{{" {ws} "}}"')
        rule = self._rule(values, f"{path}.additionalProperties", depth + 1)
        member = self._grammar.rule(f'{string} {ws} ":" {ws} {rule} {ws}')
        return self._grammar.rule(f'"{{" {ws} ({member} ("," {ws} {member})*)? "}}"')

    def _array(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        ws = self._grammar.common("ws")
        least, most = self._bounds(schema, "Items", path)
        prefix = schema.get("prefixItems")
        if prefix is not None:
            if not isinstance(prefix, list) or not 1 <= len(prefix) <= MAX_COUNT:
                raise self._error(f"it must list 1 to {MAX_COUNT} schemas", f"{path}.prefixItems")
            rules = [self._rule(item, f"{path}.prefixItems[{i}]", depth + 1) for i, item in enumerate(prefix)]
            inside = f' "," {ws} '.join(f"{rule} {ws}" for rule in rules)
            return self._grammar.rule(f'"[" {ws} {inside} "]"')
        rule = self._rule(schema.get("items", True), f"{path}.items", depth + 1)
        if most == 0:
            return self._grammar.rule(f'"[" {ws} "]"')
        more = _repeat(
            self._grammar.rule(f'"," {ws} {rule} {ws}'), max(0, least - 1), None if most is None else most - 1
        )
        inside = f"{rule} {ws} {more}" if least else f"({rule} {ws} {more})?"
        return self._grammar.rule(f'"[" {ws} {inside} "]"')

    def _string(self, schema: Mapping[str, Any], path: str, _: int) -> str:
        if schema.get("format") in _FORMATS:
            inside = self._grammar.common(schema["format"])
            return self._grammar.rule(rf'"\"" {inside} "\""')
        least, most = self._bounds(schema, "Length", path)
        if not least and most is None:
            return self._grammar.common("string")
        return self._grammar.rule(rf'"\"" {_repeat(self._grammar.common("char"), least, most)} "\""')

    def _bounds(self, schema: Mapping[str, Any], what: str, path: str) -> tuple[int, int | None]:
        least, most = (schema.get(f"{end}{what}") for end in ("min", "max"))
        for name, value in ((f"min{what}", least), (f"max{what}", most)):
            if value is not None and (type(value) is not int or not 0 <= value <= MAX_COUNT):
                raise self._error(f"it must be a whole number from 0 to {MAX_COUNT}", f"{path}.{name}")
        if least is not None and most is not None and least > most:
            raise self._error(f"it must be at least min{what}", f"{path}.max{what}")
        self._repeated += most if most is not None else least or 0
        if self._repeated > MAX_REPEATED:
            raise self._error(f"lengths and counts add up to more than {MAX_REPEATED}", path)
        return least or 0, most


def _repeat(rule: str, least: int, most: int | None) -> str:
    return f"{rule}{{{least},{'' if most is None else most}}}"


def _implied(schema: Mapping[str, Any]) -> str:
    """The type of a schema that names none, by what it says."""
    if any(name in schema for name in ("properties", "required", "additionalProperties")):
        return "object"
    if any(name in schema for name in ("items", "prefixItems", "minItems", "maxItems")):
        return "array"
    return "string" if any(name in schema for name in ("minLength", "maxLength", "pattern")) else "value"
