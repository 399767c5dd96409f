"""JSON schemas as grammars: what fits the grammar is JSON that the schema takes.

llama-cpp-python carries a converter, too. It has no bounds, spells what is not ASCII as escapes that no model writes
by itself, and stops at assertions. Schemas come from users: all is bounded here, before a compiler sees it that was
seen to crash on repetitions in the thousands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from gateway.errors import InvalidRequestError
from gateway.protocol import combining, keywords, pattern
from gateway.protocol.grammar import FORMATS, Grammar, literal
from gateway.protocol.keywords import MAX_PROPERTIES, Budget
from gateway.protocol.numerals import numerals
from gateway.protocol.values import check_values

MAX_DEPTH: Final = 16
MAX_REPEATED: Final = 4096
"""All lengths and counts of a schema together: compiled, each one is a rule."""
PATTERN_COST: Final = 2
"""What a character of a pattern costs, in values."""

# Formats that JSON Schema knows and we do not.
_UNHELD_FORMATS: Final = frozenset(
    ("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer",
     "relative-json-pointer", "regex")
)  # fmt: skip
_KINDS_OF: Final[dict[str, tuple[str, ...]]] = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "unevaluatedProperties",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


class Schema:
    """One schema on its way into a grammar. `param` is where it lies in the request, for what is wrong with it."""

    def __init__(self, grammar: Grammar, root: Any, *, param: str, budget: Budget | None = None) -> None:
        """Nothing of it is looked at before `rule`; schemas of one request share a `budget`."""
        self._grammar = grammar
        self._root = root
        self._param = param
        self._budget = budget or Budget()
        self._properties = 0
        self._repeated = 0
        self._references: dict[str, str] = {}
        self._kinds: dict[str, Callable[[Mapping[str, Any], str, int, str], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "number": self._number,
            "integer": self._number,
        }

    def rule(self) -> str:
        """The name of the rule for all of it. Raises InvalidRequestError."""
        check_values(self._root, self._param)
        return self._rule(self._root, "", 1)

    def _error(self, problem: str, path: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self._param}{path}: {problem}", param=self._param + path)

    def _spend(self, cost: int, path: str) -> None:
        if not self._budget.spend(cost):
            raise self._error("the schema is too large; references count as often as they are followed", path)

    def _visited(self, schema: Any, path: str) -> dict[str, Any]:
        """Return `schema` once its keywords are checked and its cost is paid. Raises InvalidRequestError."""
        if not isinstance(schema, dict):
            raise self._error("a schema is a JSON object", path)
        self._spend(keywords.weight(schema), path)
        found = keywords.problem(schema)
        if found is not None:
            name, problem = found
            raise self._error(problem, f"{path}.{name}")
        return schema

    def _rule(self, schema: Any, path: str, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise self._error(f"it is nested more than {MAX_DEPTH} deep", path)
        if schema is True:
            return self._grammar.common("value")
        said = combining.assertions(self._visited(schema, path))
        if "const" in said or "enum" in said:
            return self._values(said, path)
        for name in ("$ref", "allOf", "anyOf", "oneOf"):
            if name in said:
                beside = {word: value for word, value in said.items() if word != name}
                return self._combined(name, said[name], beside, path, depth)
        return self._typed(said, path, depth)

    def _combined(self, name: str, value: Any, beside: Mapping[str, Any], path: str, depth: int) -> str:
        """A schema that is put together from others, with what stands beside."""
        if name == "$ref":
            return self._reference(value, beside, path, depth)
        if name == "allOf":
            return self._rule(self._joined([beside, *value], f"{path}.allOf"), path, depth + 1)
        schemas = self._told_apart(value, f"{path}.oneOf") if name == "oneOf" else value
        if beside:
            schemas = [self._joined([beside, schema], f"{path}.{name}[{i}]") for i, schema in enumerate(schemas)]
        return self._either([self._rule(schema, f"{path}.{name}[{i}]", depth + 1) for i, schema in enumerate(schemas)])

    def _told_apart(self, schemas: Sequence[Any], path: str) -> list[Any]:
        """`schemas` such that what fits one fits no other."""
        seen = [self._seen(schema, f"{path}[{i}]") for i, schema in enumerate(schemas)]
        if len(seen) == 1 or combining.all_apart(seen):
            return list(schemas)
        for i, schema in enumerate(seen):
            for name, inner in schema.get("properties", {}).items():
                if isinstance(inner, dict):
                    self._visited(inner, f"{path}[{i}].properties.{name[:80]}")
        tag = combining.tag(seen)
        if tag is None:
            raise self._error("it is not plain that only one of them fits; use `anyOf`", path)
        # What tells them apart has to be there; where it lies elsewhere, it may go on in a circle.
        return [{**schema, "required": [*schema.get("required", []), tag]} for schema in schemas]

    def _seen(self, schema: Any, path: str) -> dict[str, Any]:
        """A schema, or what it refers to together with what stands beside the reference."""
        visited = self._visited(schema, path)
        if "$ref" not in visited:
            return visited
        found = self._visited(self._find(visited["$ref"], path), path)
        beside = combining.assertions(visited, "$ref")
        return self._merged([beside, found], path) if beside else found

    def _joined(self, schemas: Sequence[Any], path: str) -> dict[str, Any]:
        """One schema for what fits all of `schemas`."""
        return self._merged([self._seen(schema, path) for schema in schemas if schema is not True], path)

    def _merged(self, schemas: Sequence[Mapping[str, Any]], path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for schema in schemas:
            # In full: keywords of both are compared in depth.
            self._spend(keywords.size(schema) + keywords.weight(found), path)
            try:
                found = combining.joined([found, schema])
            except combining.ConflictError as error:
                raise self._error(f"its parts differ about `{error}`", path) from error
        return found

    def _reference(self, reference: str, beside: Mapping[str, Any], path: str, depth: int) -> str:
        """A schema that lies elsewhere, with what stands beside the reference."""
        if beside:
            self._spend(keywords.size(beside), path)
        key = json.dumps([reference, beside], sort_keys=True)
        if key not in self._references:
            # Named before it is looked into: it may refer to itself further down.
            self._references[key] = name = self._grammar.name()
            found = self._find(reference, path)
            schema = self._joined([beside, found], f"{path}.$ref") if beside else found
            self._grammar.define(name, self._rule(schema, path, depth + 1))
        return self._references[key]

    def _find(self, reference: str, path: str) -> Any:
        found = self._root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise self._error(f"there is no {reference[:80]}", f"{path}.$ref")
            found = found[key]
        return found

    def _values(self, said: Mapping[str, Any], path: str) -> str:
        """A rule for values that are listed, as far as they are of the type that is said beside."""
        values = said.get("enum", [said.get("const")])
        other = next((name for name in said if name not in ("const", "enum", "type")), None)
        if other is not None:
            raise self._error("it cannot be held to beside values that are listed", f"{path}.{other}")
        if "const" in said:
            only = json.dumps(said["const"])
            values = [value for value in values if json.dumps(value) == only]
        if "type" in said:
            kinds = _listed(said["type"])
            values = [value for value in values if any(combining.is_of(value, kind) for kind in kinds)]
        if not values:
            raise self._error("no value fits", path)
        return self._grammar.rule(" | ".join(literal(json.dumps(value, ensure_ascii=False)) for value in values))

    def _typed(self, said: Mapping[str, Any], path: str, depth: int) -> str:
        kinds = _listed(said["type"]) if "type" in said else _implied(said)
        return self._either(
            [
                self._kinds[kind](said, path, depth, kind) if kind in self._kinds else self._grammar.common(kind)
                for kind in kinds
            ]
        )

    def _either(self, rules: Sequence[str]) -> str:
        rules = list(dict.fromkeys(rules))
        return rules[0] if len(rules) == 1 else self._grammar.rule(" | ".join(rules))

    def _object(self, schema: Mapping[str, Any], path: str, depth: int, _: str) -> str:
        properties, required = schema.get("properties", {}), dict.fromkeys(schema.get("required", []))
        others = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        if not properties and not required:
            return self._map(schema, others, path, depth)
        if "propertyNames" in schema:
            raise self._error("it cannot be held to beside `properties`", f"{path}.propertyNames")
        # What is required and not described is as the others, which may be anything.
        more = [name for name in required if name not in properties]
        if more and others is False:
            raise self._error(f"`{more[0][:80]}` is required and not allowed", f"{path}.required")
        properties = {**properties, **dict.fromkeys(more, others)}
        self._check_number(schema, len(required), len(properties), path)
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

    def _check_number(self, schema: Mapping[str, Any], least: int, most: int, path: str) -> None:
        """Of an object whose properties are described there are `least` to `most` anyway."""
        fewest, largest = self._bounds(schema, "Properties", path)
        if fewest > least:
            raise self._error("say which ones: `required`", f"{path}.minProperties")
        if largest is not None and largest < most:
            raise self._error("describe no more than may be there", f"{path}.maxProperties")

    def _map(self, schema: Mapping[str, Any], values: Any, path: str, depth: int) -> str:
        least, most = self._bounds(schema, "Properties", path)
        if least > 1:  # two of one name would count as one
            raise self._error("more than one cannot be held to", f"{path}.minProperties")
        plain = values is True or values == {}
        if plain and "propertyNames" not in schema and (least, most) == (0, None):
            return self._grammar.common("object")
        ws = self._grammar.common("ws")
        if values is False or most == 0:
            if least:
                raise self._error("nothing fits", f"{path}.minProperties")
            return self._grammar.rule(f'"{{" {ws} "}}"')
        name = self._name(schema.get("propertyNames", True), f"{path}.propertyNames", depth)
        rule = self._rule(values, f"{path}.additionalProperties", depth + 1)
        member = self._grammar.rule(f'{name} {ws} ":" {ws} {rule} {ws}')
        more = _repeat(self._grammar.rule(f'"," {ws} {member}'), 0, None if most is None else most - 1)
        inside = f"{member} {more}"
        return self._grammar.rule(f'"{{" {ws} {inside if least else f"({inside})?"} "}}"')

    def _name(self, schema: Any, path: str, depth: int) -> str:
        if schema is True:
            return self._grammar.common("string")
        return self._rule(self._joined([{"type": "string"}, schema], path), path, depth + 1)

    def _array(self, schema: Mapping[str, Any], path: str, depth: int, _: str) -> str:
        ws = self._grammar.common("ws")
        least, most = self._bounds(schema, "Items", path)
        prefix = schema.get("prefixItems")
        if prefix is not None:
            return self._tuple(prefix, schema.get("items", True), least, most, path=path, depth=depth)
        if (most == 0 or schema.get("items") is False) and not least:
            return self._grammar.rule(f'"[" {ws} "]"')
        rule = self._rule(schema.get("items", True), f"{path}.items", depth + 1)
        more = _repeat(
            self._grammar.rule(f'"," {ws} {rule} {ws}'), max(0, least - 1), None if most is None else most - 1
        )
        inside = f"{rule} {ws} {more}" if least else f"({rule} {ws} {more})?"
        return self._grammar.rule(f'"[" {ws} {inside} "]"')

    def _tuple(self, prefix: list[Any], items: Any, least: int, most: int | None, *, path: str, depth: int) -> str:
        """A rule for a list whose first items have schemas of their own: as many as there are, if `most` allows it."""
        ws, count = self._grammar.common("ws"), len(prefix) if most is None else min(len(prefix), most)
        rules = [self._rule(item, f"{path}.prefixItems[{i}]", depth + 1) for i, item in enumerate(prefix[:count])]
        if least > count:
            if items is False:
                raise self._error("there are not so many items", f"{path}.minItems")
            rules += [self._rule(items, f"{path}.items", depth + 1)] * (least - count)
        inside = f' "," {ws} '.join(f"{rule} {ws}" for rule in rules)
        return self._grammar.rule(f'"[" {ws} {inside} "]"')

    def _string(self, schema: Mapping[str, Any], path: str, _depth: int, _: str) -> str:
        least, most = self._bounds(schema, "Length", path)
        if "pattern" in schema:
            if "format" in schema:
                raise self._error("it cannot be held to beside `pattern`", f"{path}.format")
            return self._pattern(schema["pattern"], least, most, path)
        if schema.get("format") in FORMATS:
            return self._format(schema["format"], least, most, path)
        if schema.get("format") in _UNHELD_FORMATS:
            raise self._error(f"it cannot be held to; these can: {', '.join(FORMATS)}", f"{path}.format")
        if not least and most is None:
            return self._grammar.common("string")
        return self._grammar.rule(rf'"\"" {_repeat(self._grammar.common("char"), least, most)} "\""')

    def _pattern(self, text: str, least: int, most: int | None, path: str) -> str:
        self._spend(PATTERN_COST * len(text), path)
        try:
            body, rules = pattern.written(pattern.parse(text), self._grammar.common("char"), least, most)
        except pattern.PatternError as error:
            raise self._error(f"{error}", f"{path}.pattern") from error
        self._repeat(rules, f"{path}.pattern")
        return self._grammar.rule(rf'"\"" ({body}) "\""')

    def _format(self, name: str, least: int, most: int | None, path: str) -> str:
        fewest, largest = FORMATS[name]
        for bound, fits in (("minLength", least <= fewest), ("maxLength", most is None or most >= largest)):
            if not fits:
                raise self._error(f"`{name}` has {fewest} to {largest} characters here", f"{path}.{bound}")
        return self._grammar.rule(rf'"\"" {self._grammar.common(name)} "\""')

    def _number(self, schema: Mapping[str, Any], path: str, _: int, kind: str) -> str:
        least, strictly_more = self._bound(schema, ("minimum", "exclusiveMinimum"), max)
        most, strictly_less = self._bound(schema, ("maximum", "exclusiveMaximum"), min)
        if least is None and most is None:
            return self._grammar.common(kind)
        body = numerals(least, most, whole=kind == "integer", inside=(strictly_more, strictly_less))
        if body is None:
            raise self._error("no number fits, or none of up to 15 digits", path)
        return self._grammar.rule(body)

    @staticmethod
    def _bound(
        schema: Mapping[str, Any], names: tuple[str, str], inner: Callable[..., Any]
    ) -> tuple[Decimal | None, bool]:
        """The bound of a number on one side, and whether it must not be met itself."""
        found: list[tuple[Decimal, bool]] = []
        for name in names:
            value = schema.get(name)
            if value is None:
                continue
            found.append((Decimal(repr(value)), name.startswith("exclusive")))
        if not found:
            return None, False
        bound = inner(value for value, _ in found)
        return bound, (bound, True) in found

    def _bounds(self, schema: Mapping[str, Any], what: str, path: str) -> tuple[int, int | None]:
        least, most = (schema.get(f"{end}{what}") for end in ("min", "max"))
        if least is not None and most is not None and least > most:
            raise self._error(f"it must be at least min{what}", f"{path}.max{what}")
        self._repeat(most if most is not None else least or 0, path)
        return least or 0, most

    def _repeat(self, count: int, path: str) -> None:
        self._repeated += count
        if self._repeated > MAX_REPEATED:
            raise self._error(f"lengths and counts add up to more than {MAX_REPEATED}", path)


def _repeat(rule: str, least: int, most: int | None) -> str:
    return f"{rule}{{{least},{'' if most is None else most}}}"


def _listed(kinds: str | list[str]) -> list[str]:
    return [kinds] if isinstance(kinds, str) else kinds


def _implied(said: Mapping[str, Any]) -> list[str]:
    """Types for a schema that names none, by what it speaks of."""
    return [kind for kind, names in _KINDS_OF.items() if any(name in said for name in names)] or ["value"]
