"""The rules of a grammar that produce function calls in a model's own format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.errors import InvalidRequestError
from gateway.prompts.schemas import (
    FORMATS,
    Schema,
    closed,
    dictionary,
    has_control_characters,
    names,
    resolved,
    subschemas,
)
from gateway.protocol.call_format import ANY_TYPE, CallFormat, JsonType, ParameterKind, Parameters, Tags

MAX_LENGTH: Final = 50_000
"""Maximum bound on a text's length that is enforced; no answer is longer."""
MAX_LEAST: Final = 1_000
"""Maximum lower bound on a text's length that is enforced: llguidance exceeds its limits at 4 000."""
WHITESPACE: Final = r"[ ]?|\n[ \t]{0,20}"
"""Whitespace between JSON tokens: enough for indented JSON, and not endless, as small models write it."""
ESCAPES: Final = r"nrbtf\""
"""Escapes in strings. `\u0061` would write a declared property's name in a way that llguidance takes for undeclared."""
ANY_OBJECT: Final[Schema] = {"type": "object"}
_LENIENT: Final[dict[str, Any]] = {"lenient": True, "coerce_one_of": True}
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
_TYPES: Final[dict[Any, tuple[JsonType, ...]]] = {
    "null": ("null",), "boolean": ("boolean",), "integer": ("integer",), "number": ("integer", "number"),
    "array": ("array",), "object": ("object",), type(None): ("null",), bool: ("boolean",), int: ("integer",),
    float: ("number",), list: ("array",), dict: ("object",),
}  # fmt: skip
"""Types of JSON by their names in schemas, and by those of Python's."""
_LOOKS: Final[dict[JsonType, str]] = {
    "null": "(null|None)", "boolean": "(true|false|True|False)", "integer": "-?[0-9][0-9.eE+-]*",
    "number": "-?[0-9][0-9.eE+-]*", "array": r"\[(?s:.*)", "object": r"\{(?s:.*)",
}  # fmt: skip
"""Patterns of texts that could be JSON of a type."""


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
class Part:
    """A schema of a request, which becomes a separate grammar."""

    name: str
    """Name of the grammar."""
    path: str
    """Path of the schema in the request."""
    schema: Schema
    strict: bool
    ignored: tuple[str, ...] = ()
    """Paths of keywords that are not enforced."""
    lark: str | None = None
    """A grammar that replaces the schema."""
    fallback: Schema = field(default_factory=lambda: ANY_OBJECT)
    """What replaces a schema that cannot be enforced."""

    @property
    def grammar(self) -> dict[str, Any]:
        """The part in llguidance's form."""
        if self.lark is not None:
            return {"name": self.name, "lark_grammar": self.lark}
        options: dict[str, Any] = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES}
        if has_control_characters(self.schema):
            options["json_allowed_escapes"] += "u"
        if not self.strict:
            options |= _LENIENT
        return {"name": self.name, "json_schema": {**closed(self.schema), "x-guidance": options}}

    def reduced(self) -> Part:
        """Return the part with any JSON instead of its schema, or with any object if only objects are valid."""
        return self if self.schema == self.fallback else replace(self, schema=self.fallback, ignored=(self.path,))


@dataclass(frozen=True)
class CallGrammar:
    """Rules that produce a call: `call` after the trigger, and those that it needs."""

    rules: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    parameters: Parameters = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def literal(text: str, controls: Sequence[tuple[str, int]] = ()) -> str:
    """Return `text` in llguidance's syntax, with control tokens as tokens."""
    for name, token in controls:
        before, found, after = text.partition(name)
        if found:
            sides = [literal(side, controls) if side else "" for side in (before, after)]
            return f"{sides[0]} <[{token}]> {sides[1]}".strip()
    return json.dumps(text)


def call_grammar(functions: Sequence[Function], calls: CallFormat) -> CallGrammar:
    """Return the rules for one call after the trigger; they use the terminal ANY. Raises InvalidRequestError."""
    grammar = CallGrammar()
    if not functions:
        return grammar
    if calls.tags is None:
        return _json_calls(functions, calls)
    choices = [f"{literal(calls.rest + function.name)} f{i}_first0" for i, function in enumerate(functions)]
    stop = literal(calls.tags.stop)
    call = f"call: {' | '.join(choices)}"
    grammar.rules.extend([call, f"VALUE: (ANY & ~(ANY {stop} ANY))", f"TEXT: VALUE {stop}"])
    for i, function in enumerate(functions):
        _Tagged(function, f"f{i}", calls, calls.tags, grammar).add()
    return grammar


def _json_calls(functions: Sequence[Function], calls: CallFormat) -> CallGrammar:
    controls = calls.controls
    if calls.name_last:
        start = f"{literal(calls.rest, controls)} "
        choices = " | ".join(f"@f{i} {literal(calls.middle + f.name, controls)}" for i, f in enumerate(functions))
    else:
        start, headers = "", [f"{calls.rest}{function.name}{calls.middle}" for function in functions]
        choices = " | ".join(f"{literal(header, controls)} @f{i}" for i, header in enumerate(headers))
    pieces = [f"{start}({choices})", _call_id(calls), literal(calls.closing, controls) if calls.closing else ""]
    parts = [Part(f"f{i}", function.path, function.schema, function.strict) for i, function in enumerate(functions)]
    return CallGrammar([f"call: {' '.join(piece for piece in pieces if piece)}"], parts)


def _call_id(calls: CallFormat) -> str:
    if calls.call_id is None:
        return ""
    before, after = (literal(text, calls.controls) for text in calls.call_id)
    return f"({before} /[A-Za-z0-9]{{9}}/ {after})?"


class _Tagged:
    """Adds the rules of one function whose parameters have tags of their own, in the order of its schema."""

    def __init__(self, function: Function, prefix: str, calls: CallFormat, tags: Tags, grammar: CallGrammar) -> None:
        self._function = function
        self._prefix = prefix
        self._closing = calls.closing
        self._tags = tags
        self._root = function.schema
        reference = {name: value for name, value in function.schema.items() if name != "type"}
        self._schema = _merged(reference, function.schema)
        self._grammar = grammar
        self._kinds: dict[str, ParameterKind] = {}

    def add(self) -> None:
        for name in self._schema:
            if name not in _OBJECT | _ANNOTATIONS:
                self._ignore(f"{self._function.path}.{name}")
        properties = dictionary(self._schema.get("properties"))
        required = names(self._schema.get("required"))
        declared = list(dict.fromkeys([*properties, *required]))
        for name in [name for name in declared if self._tags.assign[:1] in name or not name]:
            declared.remove(name)  # it would end its tag
            self._ignore(f"{self._function.path}.properties.{name[:80]}")
        for i, name in enumerate(declared):
            self._parameter(i, name, dictionary(properties.get(name)), required=name in required)
        self._end(len(declared), is_open=self._is_open(properties))
        self._grammar.parameters[self._function.name] = self._kinds

    def _end(self, last: int, *, is_open: bool) -> None:
        """Add the rules after the declared parameters."""
        tags, more = self._tags, self._name(f"more{last}")
        closing, empty = literal(self._closing.removeprefix(tags.stop)), literal(tags.empty)
        if is_open:
            pair = self._name("pair")
            self._rule("pair", f"{_ANY_KEY} {literal(tags.assign)} TEXT")
            closing = f"{closing} | {literal(tags.following.removeprefix(tags.stop))} {pair} {more}"
            empty = f"{empty} | {literal(tags.first)} {pair} {more}"
        self._rule(f"more{last}", closing)
        self._rule(f"first{last}", empty)

    def _name(self, rule: str) -> str:
        return f"{self._prefix}_{rule}"

    def _rule(self, name: str, body: str) -> None:
        self._grammar.rules.append(f"{self._name(name)}: {body}")

    def _is_open(self, properties: Schema) -> bool:
        """Return whether the function takes parameters that its schema does not declare. Declared ones are enough."""
        additional = self._schema.get("additionalProperties", True)
        if properties or additional is False:
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
        self._grammar.ignored.append(path)

    def _parameter(self, i: int, name: str, schema: Schema, *, required: bool) -> None:
        tags = self._tags
        value = self._value(i, name, schema)
        self._rule(f"p{i}", f"{literal(name + tags.assign)} ({value})")
        parameter, more = self._name(f"p{i}"), self._name(f"more{i + 1}")
        following = f"{literal(tags.following.removeprefix(tags.stop))} {parameter} {more}"
        first = f"{literal(tags.first)} {parameter} {more}"
        self._rule(f"more{i}", following if required else f"{following} | {more}")
        self._rule(f"first{i}", first if required else f"{first} | {self._name(f'first{i + 1}')}")

    def _value(self, i: int, name: str, schema: Schema) -> str:
        """Return the grammar of a value and the `stop` after it."""
        path = f"{self._function.path}.properties.{name[:80]}"
        if not _keywords(schema):
            self._kinds[name] = ANY_TYPE
            return "TEXT"
        found = _separated(schema, self._root, self._tags.stop)
        if found is None:
            self._kinds[name] = None
            return self._json(i, schema, path)
        for keyword in found.ignored:
            self._ignore(f"{path}.{keyword}")
        self._kinds[name] = found.types
        terminal, text, others = f"TEXT_{self._prefix.upper()}_{i}", " | ".join(found.texts), found.others
        if all(_keywords(other) == {"type"} for other in others):
            others = [] if "VALUE" in found.texts else others
        else:
            text = " & ".join([f"({text})", *(rf"~/\s*{_LOOKS[kind]}\s*/" for kind in found.types)])
        self._grammar.rules.append(f"{terminal}: ({text}) {literal(self._tags.stop)}")
        return f"{terminal} | {self._json(i, {'anyOf': others}, path)}" if others else terminal

    def _json(self, i: int, schema: Schema, path: str) -> str:
        """Return the grammar of a value in JSON and the `stop` after it."""
        alone: Schema = {**{name: self._root[name] for name in _DEFINITIONS if name in self._root}, **schema}
        references = [inner.get("$ref") for _, inner in subschemas(alone)]
        if any(isinstance(ref, str) and ref.startswith("#") and not ref.startswith(_LOCAL) for ref in references):
            self._ignore(f"{path}.$ref")
            alone = {}
        name = f"{self._prefix}p{i}"
        self._grammar.parts.append(Part(name, path, alone, self._function.strict, fallback={}))
        return f"@{name} {literal(self._tags.stop)}"


@dataclass(frozen=True)
class _Separated:
    """The values that a schema allows: strings, which are written as they are, and others, in JSON."""

    texts: list[str]
    """Terminals of the strings."""
    ignored: list[str]
    """Keywords of the strings that are not enforced."""
    others: list[Schema]
    types: tuple[JsonType, ...]
    """Types of the others."""


def _separated(schema: Schema, root: Schema, stop: str) -> _Separated | None:
    """Return the values that `schema` allows; None if it allows no strings, or if they must be written in JSON."""
    found = _Separated([], [], [], ())
    kinds: list[JsonType] = []
    is_exclusive = "oneOf" in schema
    for alternative in _alternatives(schema, root):
        if _is_text(alternative):
            terminal, ignored = _terminal(alternative)
            found.texts.append(terminal)
            found.ignored.extend(ignored)
        else:
            types = _types(alternative)
            if not types or (is_exclusive and not set(types).isdisjoint(kinds)):
                return None
            kinds += types
            found.others.append(alternative)
    if not found.texts or (is_exclusive and len(found.texts) > 1) or json.dumps(stop)[1:-1] in "".join(found.texts):
        return None
    return replace(found, types=tuple(dict.fromkeys(kinds)))


def _alternatives(schema: Any, root: Schema) -> list[Schema]:
    """Return schemas of one type each, of which a value must fit one; `schema` itself if there are none."""
    schema = _merged(dictionary(schema), root)
    keywords = _keywords(schema)
    union = schema.get("anyOf", schema.get("oneOf"))
    if keywords in ({"anyOf"}, {"oneOf"}) and isinstance(union, list):
        return [alternative for branch in union for alternative in _alternatives(branch, root)]
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and keywords <= {"enum", "const", "type"}:
        groups = ([v for v in values if isinstance(v, str)], [v for v in values if not isinstance(v, str)])
        return [{"enum": group} for group in groups if group]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": kind} for kind in schema["type"]]
    return [schema]


def _keywords(schema: Schema) -> set[str]:
    return set(schema) - _ANNOTATIONS


def _is_text(schema: Schema) -> bool:
    if "enum" in schema:
        return _keywords(schema) == {"enum"} and all(isinstance(value, str) for value in schema["enum"])
    return schema.get("type") == "string" and _keywords(schema) <= _TEXT


def _types(schema: Schema) -> tuple[JsonType, ...]:
    """Return the types of the values that `schema` allows, without strings; empty if it does not say."""
    if "enum" in schema and _keywords(schema) == {"enum"}:
        return tuple(kind for value in schema["enum"] for kind in _TYPES.get(type(value), ()))
    kind = schema.get("type")
    return _TYPES.get(kind, ()) if isinstance(kind, str) else ()


def _terminal(schema: Schema) -> tuple[str, list[str]]:
    """Return the terminal of a text without its end, and the keywords that it does not enforce."""
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"])), []
    ignored = ["pattern"] if "pattern" in schema else []
    ignored += ["format"] if schema.get("format") in FORMATS else []
    bounds = {"minLength": 0, "maxLength": MAX_LENGTH}
    for name, most in (("minLength", MAX_LEAST), ("maxLength", None)):
        bound = schema.get(name, bounds[name])
        if type(bound) is not int or bound < 0 or (most is not None and bound > most):
            ignored.append(name)
        else:
            bounds[name] = min(bound, MAX_LENGTH)
    least, most = bounds.values()
    if least == 0 and most == MAX_LENGTH:
        return "VALUE", ignored
    return f"(VALUE & /(?s:.{{{least},{'' if most == MAX_LENGTH else most}}})/)", ignored


def _merged(schema: Schema, root: Schema) -> Schema:
    """Return the schema that a reference within `root` leads to, if `schema` is nothing but a reference."""
    for _ in range(8):
        if _keywords(schema) != {"$ref"}:
            break
        target = resolved(schema, root)
        if target is schema or not target:
            break
        schema = target
    return schema
