"""The rules of a grammar that produce function calls in a model's own format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.errors import InvalidRequestError
from gateway.prompts.schemas import FORMATS, Schema, resolved, subschemas
from gateway.protocol.call_format import CallFormat, ParameterKind, Parameters, Tags

MAX_LENGTH: Final = 50_000
"""Maximum bound on a text's length that is enforced; no answer is longer."""
MAX_LEAST: Final = 1_000
"""Maximum lower bound on a text's length that is enforced: llguidance exceeds its limits at 4 000."""
_ANY_KEY: Final = r"/[^\s<>=\"'\/]{1,64}/"
"""The name of a parameter that the schema does not declare."""
_DEFINITIONS: Final = ("$defs", "definitions")
_LOCAL: Final = tuple(f"#/{name}/" for name in _DEFINITIONS)
"""Beginnings of references that mean the same in a parameter's schema as in the whole."""
_ANNOTATIONS: Final = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
     "$schema", "$id", "contentEncoding", "contentMediaType", *_DEFINITIONS)
)  # fmt: skip
"""Keywords that do not restrict values."""
_OBJECT: Final = frozenset(("type", "properties", "required", "additionalProperties"))
"""Keywords of the arguments' schema that hold because parameters are written one by one."""
_TEXT: Final = frozenset(("type", "minLength", "maxLength", "pattern", "format"))


@dataclass(frozen=True)
class Function:
    """A function that can be called."""

    name: str
    path: str
    """Path of its parameters in the request."""
    schema: Schema
    strict: bool
    ignored: tuple[str, ...] = ()
    """Paths of what was left out of the schema."""


@dataclass(frozen=True)
class Value:
    """A value in JSON, which needs a grammar of its own."""

    rule: str
    path: str
    schema: Schema
    strict: bool
    ignored: tuple[str, ...] = ()
    is_object: bool = True
    """Whether the value must be an object whatever its schema."""


@dataclass(frozen=True)
class CallGrammar:
    """Rules that produce a call: `call` after the trigger, and those that it needs."""

    rules: list[str]
    values: list[Value]
    parameters: Parameters
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Text:
    """A string that is written as it is: any text within bounds, or one of `choices`; `null` if that is allowed."""

    choices: tuple[str, ...] | None = None
    least: int = 0
    most: int | None = None
    is_nullable: bool = False
    ignored: tuple[str, ...] = ()
    """Keywords that are not enforced."""


def literal(text: str, controls: Sequence[tuple[str, int]] = ()) -> str:
    """Return `text` in llguidance's syntax, with control tokens as tokens."""
    for name, token in controls:
        before, found, after = text.partition(name)
        if found:
            sides = [literal(side, controls) if side else "" for side in (before, after)]
            return f"{sides[0]} <[{token}]> {sides[1]}".strip()
    return json.dumps(text)


def call_grammar(functions: Sequence[Function], calls: CallFormat) -> CallGrammar:
    """Return the rules for one call after the trigger. Raises InvalidRequestError."""
    if not functions:
        return CallGrammar([], [], {})
    if calls.tags is None:
        return _json_calls(functions, calls)
    grammars = [_Tagged(function, f"f{i}", calls, calls.tags).grammar() for i, function in enumerate(functions)]
    names = [f"{literal(calls.rest + function.name)} f{i}_first0" for i, function in enumerate(functions)]
    stop = literal(calls.tags.stop)
    terminals = ["ANY: /(?s:.*)/", f"STOP: {stop}", "VALUE: (ANY & ~(ANY STOP ANY))", "TEXT: VALUE STOP"]
    return CallGrammar(
        [f"call: {' | '.join(names)}", *terminals, *(rule for grammar in grammars for rule in grammar.rules)],
        [value for grammar in grammars for value in grammar.values],
        {function.name: grammar.parameters for function, grammar in zip(functions, grammars, strict=True)},
        tuple(path for grammar in grammars for path in grammar.ignored),
    )


def _json_calls(functions: Sequence[Function], calls: CallFormat) -> CallGrammar:
    controls = calls.controls
    if calls.name_last:
        start, names = f"{literal(calls.rest, controls)} ", [function.name for function in functions]
        choices = " | ".join(f"@f{i} {literal(calls.middle + name, controls)}" for i, name in enumerate(names))
    else:
        start, headers = "", [f"{calls.rest}{function.name}{calls.middle}" for function in functions]
        choices = " | ".join(f"{literal(header, controls)} @f{i}" for i, header in enumerate(headers))
    parts = [f"{start}({choices})", _call_id(calls), literal(calls.closing, controls) if calls.closing else ""]
    values = [Value(f"f{i}", function.path, function.schema, function.strict) for i, function in enumerate(functions)]
    return CallGrammar([f"call: {' '.join(part for part in parts if part)}"], values, {})


def _call_id(calls: CallFormat) -> str:
    if calls.call_id is None:
        return ""
    before, after = (literal(text, calls.controls) for text in calls.call_id)
    return f"({before} /[A-Za-z0-9]{{9}}/ {after})?"


@dataclass(frozen=True)
class _FunctionGrammar:
    rules: list[str]
    values: list[Value]
    parameters: dict[str, ParameterKind]
    ignored: list[str]


class _Tagged:
    """Builds the rules of one function whose parameters have tags of their own, in the order of its schema."""

    def __init__(self, function: Function, prefix: str, calls: CallFormat, tags: Tags) -> None:
        self._function = function
        self._prefix = prefix
        self._closing = calls.closing
        self._tags = tags
        self._root = function.schema
        reference = {name: value for name, value in function.schema.items() if name != "type"}
        self._schema = _merged(reference, function.schema)
        self._found = _FunctionGrammar([], [], {}, [])

    def grammar(self) -> _FunctionGrammar:
        self._check_keywords()
        properties = _properties(self._schema)
        required = _strings(self._schema.get("required"))
        names = [*properties, *(name for name in required if name not in properties)]
        self._drop_unwritable(names)
        for i, name in enumerate(names):
            self._parameter(i, name, properties.get(name, {}), required=name in required)
        last = len(names)
        is_open = self._is_open()
        stop, closing = self._tags.stop, literal(self._closing.removeprefix(self._tags.stop))
        following = literal(self._tags.following.removeprefix(stop))
        first, empty, more = literal(self._tags.first), literal(self._tags.empty), self._name(f"more{last}")
        if is_open:
            pair = self._name("pair")
            self._rule("pair", f"{_ANY_KEY} {literal(self._tags.assign)} TEXT")
            self._rule(f"more{last}", f"{closing} | {following} {pair} {more}")
            self._rule(f"first{last}", f"{empty} | {first} {pair} {more}")
        else:
            self._rule(f"more{last}", closing)
            self._rule(f"first{last}", empty)
        return self._found

    def _name(self, rule: str) -> str:
        return f"{self._prefix}_{rule}"

    def _rule(self, name: str, body: str) -> None:
        self._found.rules.append(f"{self._name(name)}: {body}")

    def _check_keywords(self) -> None:
        """Refuse or list keywords of the whole object that are not enforced."""
        unknown = [name for name in self._schema if name not in _OBJECT | _ANNOTATIONS]
        for name in unknown:
            self._ignore(f"{self._function.path}.{name}")

    def _is_open(self) -> bool:
        """Return whether the function takes parameters that its schema does not declare. Declared ones are enough."""
        additional = self._schema.get("additionalProperties", True)
        if _properties(self._schema) or additional is False:
            return False
        if additional not in (True, {}):
            self._ignore(f"{self._function.path}.additionalProperties")
        return True

    def _ignore(self, path: str) -> None:
        if self._function.strict:
            raise InvalidRequestError(
                f"{path}: it cannot be enforced in the format in which this model calls functions; leave it out",
                param=path,
            )
        self._found.ignored.append(path)

    def _drop_unwritable(self, names: list[str]) -> None:
        """Remove parameters whose names would end their tag."""
        for name in [name for name in names if self._tags.assign[:1] in name or not name]:
            names.remove(name)
            self._ignore(f"{self._function.path}.properties.{name[:80]}")

    def _parameter(self, i: int, name: str, schema: Any, *, required: bool) -> None:
        tags = self._tags
        value = self._value(i, name, schema if isinstance(schema, dict) else {})
        self._rule(f"p{i}", f"{literal(name + tags.assign)} {value}")
        parameter, more = self._name(f"p{i}"), self._name(f"more{i + 1}")
        following = f"{literal(tags.following.removeprefix(tags.stop))} {parameter} {more}"
        first = f"{literal(tags.first)} {parameter} {more}"
        self._rule(f"more{i}", following if required else f"{following} | {more}")
        self._rule(f"first{i}", first if required else f"{first} | {self._name(f'first{i + 1}')}")

    def _value(self, i: int, name: str, schema: Schema) -> str:
        """Return the grammar of a value and the `stop` after it."""
        path = f"{self._function.path}.properties.{name[:80]}"
        if not set(schema) - _ANNOTATIONS:
            self._found.parameters[name] = "any"
            return "TEXT"
        text = _as_text(schema, self._root)
        if text is None or any(self._tags.stop in choice for choice in text.choices or ()):
            self._found.parameters[name] = "json"
            rule = f"{self._prefix}p{i}"
            self._found.values.append(
                Value(rule, path, self._json(schema, path), self._function.strict, is_object=False)
            )
            return f"@{rule} {literal(self._tags.stop)}"
        for keyword in text.ignored:
            self._ignore(f"{path}.{keyword}")
        self._found.parameters[name] = "nullable" if text.is_nullable else "text"
        terminal = f"TEXT_{self._prefix.upper()}_{i}"
        self._found.rules.append(f"{terminal}: {_terminal(text)} STOP")
        return terminal

    def _json(self, schema: Schema, path: str) -> Schema:
        """Return a parameter's schema as a document of its own."""
        shared: Schema = {name: self._root[name] for name in _DEFINITIONS if name in self._root}
        alone = {**shared, **schema}
        for _, inner in subschemas(alone):
            reference = inner.get("$ref")
            if isinstance(reference, str) and reference.startswith("#") and not reference.startswith(_LOCAL):
                self._ignore(f"{path}.$ref")
                return {}
        return alone


def _terminal(text: _Text) -> str:
    """Return the terminal of a text without its end."""
    nulls = ['"null"'] if text.is_nullable else []
    if text.choices is not None:
        return f"({' | '.join([*map(json.dumps, text.choices), *nulls])})"
    if text.least == 0 and text.most is None:
        return "VALUE"
    bounded = f"(VALUE & /(?s:.{{{text.least},{'' if text.most is None else text.most}}})/)"
    return f"({' | '.join([bounded, *nulls])})"


def _as_text(schema: Schema, root: Schema) -> _Text | None:
    """Return the strings that `schema` allows; None if it allows other values than strings and null."""
    schema = _merged(schema, root)
    keywords = set(schema) - _ANNOTATIONS
    if keywords <= {"enum", "const", "type"} and keywords & {"enum", "const"}:
        return _choices(schema)
    if keywords in ({"anyOf"}, {"oneOf"}):
        return _union(schema.get("anyOf", schema.get("oneOf")), root)
    kind = schema.get("type")
    kinds = set(_strings(kind if isinstance(kind, list) else [kind]))
    if not keywords <= _TEXT or "string" not in kinds or not kinds <= {"string", "null"}:
        return None
    return replace(_bounded(schema), is_nullable="null" in kinds)


def _choices(schema: Schema) -> _Text | None:
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list) or not values or not all(isinstance(value, str | None) for value in values):
        return None
    strings = tuple(value for value in values if value is not None)
    return _Text(choices=strings, is_nullable=None in values) if strings else None


def _union(branches: Any, root: Schema) -> _Text | None:
    """Return the strings of a union of one text with null."""
    if not isinstance(branches, list) or not all(isinstance(branch, dict) for branch in branches):
        return None
    others = [branch for branch in branches if set(branch) - _ANNOTATIONS != {"type"} or branch["type"] != "null"]
    text = _as_text(others[0], root) if len(others) == 1 else None
    return None if text is None else replace(text, is_nullable=text.is_nullable or len(others) < len(branches))


def _bounded(schema: Schema) -> _Text:
    ignored: list[str] = [name for name in ("pattern", "format") if name in schema]
    ignored = [name for name in ignored if name != "format" or schema[name] in FORMATS]
    bounds: dict[str, int] = {}
    for name in ("minLength", "maxLength"):
        bound = schema.get(name)
        if (
            isinstance(bound, int)
            and not isinstance(bound, bool)
            and 0 <= bound <= (MAX_LEAST if name == "minLength" else MAX_LENGTH)
        ):
            bounds[name] = bound
        elif bound is not None and not (name == "maxLength" and isinstance(bound, int) and bound > MAX_LENGTH):
            ignored.append(name)
    return _Text(least=bounds.get("minLength", 0), most=bounds.get("maxLength"), ignored=tuple(ignored))


def _merged(schema: Schema, root: Schema) -> Schema:
    """Return the schema that a reference within `root` leads to, if `schema` is nothing but a reference."""
    for _ in range(8):
        if "$ref" not in schema or set(schema) - _ANNOTATIONS != {"$ref"}:
            break
        target = resolved(schema, root)
        if target is schema or not target:
            break
        schema = target
    return schema


def _strings(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _properties(schema: Schema) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}
