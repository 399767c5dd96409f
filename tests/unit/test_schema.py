"""JSON schemas as output constraints: valid JSON is accepted, other JSON is not, and no schema ends an engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine import Finished, Generate, Grammar, Model, PromptProgress, Sampling, Started, Tokens, WorkerConfig
from engine.constraint import Compiler
from engine.process import EngineProcess
from engine.sampler import Sampler
from gateway.errors import ApiError
from gateway.prompts.constraints import form
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart
from gateway.protocol.tools import ErrorPaths, FunctionTool, JsonSchema, OutputConstraint, TextFormat
from tests.support.plans import MEASURED
from tests.support.schema_shapes import SHAPES

TEXT: dict[str, Any] = {"type": "string"}


@pytest.fixture(scope="module")
def compiler(model: Model) -> Compiler:
    return Compiler(model.vocabulary)


def compiled(schema: Any) -> str:
    """The grammar of an answer that must fit `schema`."""
    grammar = form([], "auto", JsonSchema(name="x", schema=schema), ErrorPaths(format="schema")).grammar
    assert grammar is not None
    return grammar


def tool(parameters: Any, *, strict: bool | None = None) -> OutputConstraint:
    """The constraint of an answer that must call a function with `parameters`."""
    function = FunctionTool(name="f", parameters=parameters, strict=strict)
    return form([function], "required", TextFormat(), ErrorPaths(tool="tools[{}]"))


CALL = '<tool_call>\n{"name": "f", "arguments": %s}\n</tool_call>'


def call(arguments: Any) -> str:
    return CALL % json.dumps(arguments, ensure_ascii=False)


def validate(value: Any, schema: Any) -> None:
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())


def refused(schema: Any) -> str | None:
    with pytest.raises(ApiError) as caught:
        compiled(schema)
    assert caught.value.code == "invalid_request"
    return caught.value.param


def accepts(compiler: Compiler, grammar: str | None, text: str) -> bool:
    """Whether an answer may be `text`, token by token, and end there."""
    assert grammar is not None
    constraint = compiler.constraint(Grammar(grammar))
    for token in compiler.vocabulary.tokenize(text, special=False):
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return any(constraint.allows(int(end)) for end in compiler.ends)


def spoken(compiler: Compiler, grammar: str, seed: int) -> str:
    """An answer of random logits under a grammar, with a preference for closing brackets and for whole characters."""
    vocabulary = compiler.vocabulary
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=seed)
    sampler = Sampler(sampling, constraint=compiler.constraint(Grammar(grammar)))
    random, said = np.random.default_rng(seed), b""
    closing = [vocabulary.tokenize(c, special=False)[0] for c in '"}],']
    digits = [vocabulary.tokenize(c, special=False)[0] for c in "0123456789"]
    for i in range(4000):
        logits = random.standard_normal(vocabulary.size).astype(np.float32)
        logits[closing] += 2 + i / 100
        logits[digits] -= i / 100
        logits[compiler.ends] += 5
        logits[128:256] -= 20  # bytes of multi-byte characters
        token = sampler.draw(logits)
        if vocabulary.ends_generation(token):
            return said.decode()
        said += vocabulary.piece(token)
    raise AssertionError(said.decode(errors="replace"))


SCHEMAS: dict[str, Any] = {
    "an object": {
        "type": "object",
        "properties": {"城市": TEXT, "days": {"type": "integer"}, "unit": {"enum": ["摄氏", "F", None, 5]}},
        "required": ["城市", "unit"],
    },
    "nothing required": {"type": "object", "properties": {name: {"type": "boolean"} for name in "abcde"}},
    "all required": {"type": "object", "properties": {name: {"type": "null"} for name in "abc"}, "required": [*"abc"]},
    "required, not described": {"type": "object", "properties": {"a": TEXT}, "required": ["b"]},
    "a map": {"type": "object", "additionalProperties": {"type": "number"}},
    "an empty object": {"type": "object", "additionalProperties": False},
    "lists": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 5},
    "a list of one": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 1},
    "an empty list": {"type": "array", "maxItems": 0},
    "a tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "茶"}]},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "several types": {"type": ["integer", "null"]},
    "alternatives": {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}]},
    "a tree": {
        "$defs": {"node": {
            "type": "object", "required": ["next"],
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        }},
        "$ref": "#/$defs/node",
    },
    "parts": {
        "allOf": [{"type": "object", "properties": {"a": TEXT}}, {"properties": {"b": {"type": "null"}}}],
        "required": ["a", "b"],
    },
    "whole numbers in a range": {"type": "integer", "minimum": -7, "maximum": 1205},
    "numbers of one sign": {"type": "number", "exclusiveMinimum": 0},
    "shares": {"type": "number", "minimum": 0, "maximum": 1},
    "an open range": {"type": "number", "exclusiveMinimum": -0.25, "exclusiveMaximum": 0.001},
    "a pattern": {"type": "string", "pattern": r"^(\+\d{1,3} )?[1-9][0-9]{4,9}$"},
    "a pattern with quotes": {"type": "string", "pattern": r'^"[^"\\\s]{1,9}"\\$'},
    "a pattern and lengths": {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$", "minLength": 1, "maxLength": 12},
    "a pattern that is shorter": {"type": "string", "pattern": "^[A-Z]", "minLength": 3, "maxLength": 5},
    "a tuple and more": {"type": "array", "prefixItems": [{"type": "null"}], "items": {"enum": [1]}, "minItems": 3},
    "a part of a tuple": {"type": "array", "prefixItems": [{"type": "null"}, {"enum": [1]}], "maxItems": 1},
    "a few names": {"additionalProperties": {"type": "null"}, "minProperties": 1, "maxProperties": 3, "type": "object"},
    "values of a type": {"type": "integer", "enum": [1, "a", 2.5, True, 3]},
    "a reference with siblings": {
        "$defs": {"age": {"type": "integer", "minimum": 0}},
        "properties": {"age": {"$ref": "#/$defs/age", "maximum": 9, "description": "years"}}, "required": ["age"],
    },
    "one of several by a tag": {
        "$defs": {
            "leaf": {"type": "object", "properties": {"kind": {"const": "leaf"}, "name": {"enum": ["a", "b"]}},
                     "required": ["kind"]},
            "node": {"type": "object", "properties": {
                "kind": {"const": "node"}, "next": {"oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/node"}]},
            }, "required": ["kind"]},
        },
        "oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/node"}],
    },
    "one of several by type": {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}, {"const": None}]},
    "alternatives and what all have": {
        "type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "parts that say more of one thing": {
        "allOf": [
            {"properties": {"n": {"type": "number", "minimum": 3}}, "required": ["n"]},
            {"type": "object", "properties": {"n": {"type": ["integer", "null"], "maximum": 5}}},
        ],
    },
    "quotes and line breaks": {"enum": ['"\\\n\t', "é"]},
    "a date": {"type": "string", "format": "date-time"},
    "anything": {"type": "object", "properties": {"x": True}, "required": ["x"]},
    "what pydantic writes": {
        "title": "Call", "type": "object", "required": ["city"],
        "properties": {
            "city": {"title": "City", "type": "string", "description": "城市名"},
            "days": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "Days"},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_under_a_schema_fits_it(compiler: Compiler, name: str) -> None:
    for seed in range(6):
        jsonschema.validate(json.loads(spoken(compiler, compiled(SCHEMAS[name]), seed)), SCHEMAS[name])


INSTANCES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "object", "properties": {"a": TEXT, "b": {"type": "integer"}}, "required": ["b"]},
     [{"a": "x", "b": 1}, {"b": -5}], [{}, {"a": "x"}, {"b": "1"}, {"a": 1, "b": 1}, [], 1]),
    ({"type": "object", "properties": {"a": TEXT}, "additionalProperties": False}, [{}, {"a": ""}], [{"b": 1}]),
    ({"enum": ["茶", 5, None, {"壶": [1]}]}, ["茶", 5, None, {"壶": [1]}], ["水", 6, {}, {"壶": [2]}]),
    ({"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2}, [["a"], ["a", "b"]], [[], ["a"] * 3, [1]]),
    ({"type": "array", "prefixItems": [TEXT], "items": {"type": "integer"}}, [["a", 1, 2], ["a"]], [[1], ["a", "b"]]),
    ({"type": "object", "properties": {"a": TEXT, "b": TEXT}, "minProperties": 1}, [{"a": ""}], [{}]),
    ({"type": "object", "properties": {"a": TEXT, "b": TEXT}, "maxProperties": 1}, [{"b": ""}], [{"a": "", "b": ""}]),
    ({"type": "object", "required": ["a"], "minProperties": 2}, [{"a": 1, "b": 2}], [{"a": 1}]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "茶茶茶"], ["a", "abcd"]),
    ({"type": "string", "maxLength": 20_000}, ["x" * 300], [1]),
    ({"type": "string", "pattern": "^[a-z]+(-[0-9]{2})?$"}, ["ab", "ab-12"], ["A", "ab-1", ""]),
    ({"type": "string", "pattern": "te[ae]"}, ["tea", "a tee."], ["te", ""]),
    ({"type": "integer", "minimum": -7, "maximum": 1205}, [-7, 0, 1205], [-8, 1206, 3.5]),
    ({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, [0, 2**63 - 1], [-1, 2**63]),
    ({"type": "integer", "minimum": -(2**63), "maximum": 2**53 + 1}, [0, -5, -(2**62)], [-(2**63) - 1, 2**53 + 2]),
    ({"type": "integer", "exclusiveMinimum": 2**53 + 1, "maximum": 2**60 - 1}, [2**54], [2**53, 2**53 + 1, 2**60]),
    ({"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5}, [0.5, 2, 100.0], [0, -1, 0.3]),
    ({"type": "string", "format": "date"}, ["2026-11-30"], ["2026-13-30", "today", ""]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    ({"type": "string", "format": "ipv4"}, ["192.0.2.1"], ["192.0.2", "300.0.2.1"]),
    ({"type": "string", "format": "int32"}, ["anything"], [5]),
    ({"type": "object", "patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False},
     [{"n1": 5}, {}], [{"n1": "x"}, {"m": 5}]),
    ({"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}]},
     [5, {"a": "x"}], [{}, "5"]),
    ({"allOf": [{"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]},
                {"properties": {"a": {"maximum": 5}}}]}, [{"a": 4}], [{"a": 2}, {"a": 6}, {}]),
    ({"oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]}, ["abc", 5], ["abcd", None]),
    ({"$defs": {"n": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                      "required": ["next"]}}, "$ref": "#/$defs/n"},
     [{"next": None}, {"next": {"next": None}}], [{}, {"next": {}}]),
    ({"type": "object", "properties": {f"p{i}": TEXT for i in range(2000)}}, [{}, {"p1999": "x"}], [{"p3": 1}]),
    ({"enum": [f"value {i}" for i in range(5000)]}, ["value 4999"], ["value 5000"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), INSTANCES, ids=lambda value: str(value)[:40])
def test_valid_json_is_accepted_token_by_token_and_invalid_json_is_not(
    compiler: Compiler, schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    grammar = compiled(schema)
    for indent in (None, 2):
        for value in valid:
            validate(value, schema)
            assert accepts(compiler, grammar, json.dumps(value, ensure_ascii=False, indent=indent)), value
        for value in invalid:
            with pytest.raises(jsonschema.ValidationError):
                validate(value, schema)
            assert not accepts(compiler, grammar, json.dumps(value, ensure_ascii=False, indent=indent)), value


@pytest.mark.parametrize(
    ("schema", "is_open"),
    [
        ({"properties": {"a": {}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"properties": {"a": {}}, "required": ["b"]}, True),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, True),
        ({}, True),
    ],
)
def test_an_object_gets_no_undeclared_properties_unless_its_schema_mentions_them(
    compiler: Compiler, schema: Any, is_open: bool
) -> None:
    grammar = compiled({"type": "object", **schema})
    assert accepts(compiler, grammar, '{"a": 1, "b": 2}') is is_open
    assert accepts(compiler, grammar, '{"a": 1}') is (schema.get("required") is None)


def test_a_declared_property_cannot_be_written_with_escapes_to_evade_its_schema(compiler: Compiler) -> None:
    for schema in ({"properties": {"a": {"type": "integer"}}, "additionalProperties": True},
                   {"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": True}):  # fmt: skip
        for grammar, form_ in ((compiled({"type": "object", **schema}), "%s"), (tool(schema).grammar, CALL)):
            assert accepts(compiler, grammar, form_ % '{"a": 1, "b": "x"}')
            assert not accepts(compiler, grammar, form_ % r'{"\u0061": "x"}')


def test_a_tool_without_strict_may_take_control_characters(compiler: Compiler) -> None:
    grammar = tool({"properties": {"a": {"enum": ["\x1b", "b"]}}, "required": ["a"]}).grammar
    assert accepts(compiler, grammar, call({"a": "\x1b"}))
    assert not accepts(compiler, grammar, call({"a": ""}))


@pytest.mark.parametrize("strict", [None, True])
def test_a_function_without_parameters_is_called_with_none(compiler: Compiler, strict: bool | None) -> None:
    grammar = tool(None, strict=strict).grammar
    assert accepts(compiler, grammar, call({}))
    assert not accepts(compiler, grammar, call({"city": "Rome"}))
    assert accepts(compiler, tool({}).grammar, call({"city": "Rome"}))


def test_json_has_no_endless_whitespace(compiler: Compiler) -> None:
    grammar = compiled({"type": "array"})
    assert accepts(compiler, grammar, "[\n    1, [ 2 ]\n]")
    for text in ("[  1]", "[\n\n1]", "[\n" + " " * 21 + "1]", " [1]", "[1]\n"):
        assert not accepts(compiler, grammar, text)


@pytest.mark.parametrize("name", SHAPES)
def test_a_tool_without_strict_accepts_every_shape_of_schema(compiler: Compiler, name: str) -> None:
    schema, arguments = SHAPES[name]
    constraint = tool(schema)
    assert accepts(compiler, constraint.grammar, call(arguments))
    assert not accepts(compiler, constraint.grammar, call([arguments]))
    assert all(path.startswith("tools[0]") for path in constraint.ignored)


@pytest.mark.parametrize(
    ("schema", "ignored"),
    [
        ({"properties": {"a": TEXT}}, []),
        ({"properties": {"a": {"format": "int32", "uniqueItems": False, "minLength": None}}}, []),
        ({"properties": {"a": {"uniqueItems": True, "not": {}}}}, ["properties.a.not", "properties.a.uniqueItems"]),
        ({"properties": {"a": {"pattern": "(?=a)"}, "b": {"pattern": "^b"}}}, ["properties.a.pattern"]),
        ({"properties": {"a": {"$ref": "#/b"}, "b": {"$ref": "#/$defs/b"}}, "$defs": {"b": {}}}, ["properties.a.$ref"]),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, ["if", "then"]),
        ({"properties": {"a": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}}, ["properties.a.oneOf"]),
        ({"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}, ["maxProperties"]),
        ({"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2}, ["minProperties"]),
        ({"properties": {"a": 5}}, [""]),
        ({"type": "array", "items": {}}, [""]),
    ],
)
def test_keywords_of_a_tool_that_are_not_enforced_are_listed(schema: Any, ignored: list[str]) -> None:
    assert list(tool(schema).ignored) == [f"tools[0].{path}".rstrip(".") for path in ignored]


def test_the_other_keywords_of_such_a_tool_are_enforced(compiler: Compiler) -> None:
    schema = {
        "properties": {"a": {"type": "string", "pattern": "(?=a)"}, "b": {"type": "string", "pattern": "^b$"}},
        "uniqueItems": True,
        "required": ["b"],
    }
    grammar = tool(schema).grammar
    assert accepts(compiler, grammar, call({"a": "x", "b": "b"}))
    for arguments in ({"a": 5, "b": "b"}, {"b": "x"}, {"a": "a"}):
        assert not accepts(compiler, grammar, call(arguments))


def test_a_faulty_tool_does_not_change_another(compiler: Compiler) -> None:
    good = {"properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    tools = [FunctionTool(name="g", parameters={"not": {}}), FunctionTool(name="f", parameters=good)]
    constraint = form(tools, "required", TextFormat(), ErrorPaths())
    assert constraint.ignored == ("tools[0].parameters.not",)
    assert accepts(compiler, constraint.grammar, call({"a": 1}))
    assert not accepts(compiler, constraint.grammar, call({"a": "x"}))


@pytest.mark.slow
def test_a_tool_whose_schema_takes_long_to_compile_accepts_any_object(compiler: Compiler) -> None:
    schema = {"properties": {f"p{i}": {"type": "string"} for i in range(9900)}}
    constraint = tool(schema)
    assert constraint.ignored == ("tools[0]",)
    assert accepts(compiler, constraint.grammar, call({"p1": 5}))
    with pytest.raises(ApiError, match="too long to compile"):
        tool(schema, strict=True)


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "text"}, "schema.type"),
        ({"properties": {"a": {"type": "text"}}}, "schema.properties.a.type"),
        ({"type": "object", "properties": []}, "schema.properties"),
        ({"type": "object", "properties": {"a": 1}}, "schema"),
        ({"type": "object", "properties": {}, "required": "a"}, "schema.required"),
        ({"type": "string", "maxLength": True}, "schema.maxLength"),
        ({"enum": []}, "schema"),
        ({"$ref": "#/nowhere"}, "schema.$ref"),
        ({"$ref": "https://example.org/schema.json"}, "schema.$ref"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "schema.minimum"),
        ({"type": "string", "pattern": 5}, "schema.pattern"),
        ({"type": "string", "pattern": "("}, "schema.pattern"),
        ({"type": "string", "pattern": "(?<!a)b"}, "schema.pattern"),
        ({"type": "string", "pattern": r"(a)\1"}, "schema.pattern"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "schema.required"),
        ({"type": "array", "items": TEXT, "uniqueItems": True}, "schema.uniqueItems"),
        ({"type": "array", "contains": TEXT}, "schema.contains"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "schema.dependentRequired"),
        ({"not": {"type": "null"}}, "schema.not"),
        ({"if": {"type": "null"}, "then": False}, "schema.if"),
        ({"oneOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 2}}}]}, "schema.oneOf"),
        ({"type": "string", "format": "idn-email"}, "schema.format"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "schema.oneOf"),
        ({"oneOf": [{"properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"]}, "schema.oneOf"),
        (
            {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": TEXT, "b": {"maxLength": 3}}},
            "schema.oneOf",
        ),
        ({"type": "object", "minProperties": 2}, "schema.minProperties"),
        (
            {"type": "object", "properties": {"a": {}}, "minProperties": 1, "patternProperties": {}},
            "schema.minProperties",
        ),
        ({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}, "schema.maxProperties"),
        ({"type": "integer", "multipleOf": 9007199254740993}, "schema.multipleOf"),
        ({"enum": [{"a": 9007199254740993}]}, "schema.enum"),
        ({"const": "\u0001"}, "schema.const"),
        ({"type": "object", "properties": {"a\u001b": TEXT}}, "schema.properties"),
        ({"type": "integer", "minimum": 0, "exclusiveMaximum": 0}, "schema.minimum"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0}, "schema.exclusiveMinimum"),
    ],
)
def test_a_schema_that_cannot_be_enforced_exactly_is_refused_by_name(schema: Any, param: str) -> None:
    assert refused(schema) == param
    with pytest.raises(ApiError) as caught:
        tool({"properties": {"x": schema}, "required": ["x"]}, strict=True)
    assert str(caught.value.param).startswith("tools[0]")


def test_a_refusal_names_all_keywords_that_cannot_be_enforced() -> None:
    schema = {
        "properties": {
            "a": {"type": "array", "uniqueItems": True, "contains": {}},
            "b": {"type": "object", "properties": {"c": {"not": {}}, "d": {"not": {"type": "null"}}}},
            "e": {"type": "string", "pattern": "(?=x)"},
            "f": {"enum": ["\u0001"]},
        },
    }
    paths = ["a.uniqueItems", "a.contains", "b.properties.c.not", "b.properties.d.not", "e.pattern", "f.enum"]
    with pytest.raises(ApiError) as caught:
        compiled(schema)
    assert all(f"schema.properties.{path}" in caught.value.message for path in paths), caught.value.message
    functions = [FunctionTool(name=name, parameters=schema, strict=True) for name in "fg"]
    with pytest.raises(ApiError) as caught:
        form(functions, "auto", TextFormat(), ErrorPaths())
    for i in range(2):
        assert all(f"tools[{i}].parameters.properties.{path}" in caught.value.message for path in paths)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"$ref": "#"}, "$ref"),
        ({"anyOf": [{"$ref": "#"}]}, "anyOf[0].$ref"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "$defs.a.$ref"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "properties.a.$ref"),
        ({"properties": {"a": {"$ref": "#"}}}, ""),
        ({"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}, {"type": "null"}]}}}, ""),
    ],
)
def test_a_reference_that_never_ends_is_refused_or_replaced(schema: Any, path: str) -> None:
    constraint = tool(schema)
    assert constraint.ignored == (("tools[0]",) if path else ())
    if path:
        assert refused(schema) == f"schema.{path}"
    else:
        compiled(schema)


BOUNDS = st.one_of(
    st.integers(-1200, 1200), st.integers(-(10**9), 10**9), st.decimals(-50, 50, places=3).map(float), st.just(0)
)


NUMERIC = st.fixed_dictionaries(
    {"type": st.sampled_from(["integer", "number"])},
    optional=dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), BOUNDS),
)
PATTERNS = st.sampled_from(
    ["^a+$", "^[a-f0-9]{4}$", r"^\d{3}-\d{4}$", r"^\S+$", "^(foo|bar)?baz", r"^[^\d\s]{2,}$", "^.*$", "^$",
     "^[\u4e00-\u9fff]{1,4}$", r"^(?:[A-Z][a-z]*\.){1,3}$", r"^\u0041\x42$", ""]
)  # fmt: skip
LENGTHS = st.integers(0, 9)
TEXTUAL = st.fixed_dictionaries(
    {"type": st.just("string")}, optional={"pattern": PATTERNS, "minLength": LENGTHS, "maxLength": LENGTHS}
)
SIMPLE = NUMERIC | TEXTUAL | st.fixed_dictionaries({"enum": st.lists(st.text(max_size=4), min_size=1, max_size=3)})
FITTING = st.recursive(
    SIMPLE,
    lambda inner: (
        st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
                "required": st.lists(st.sampled_from("abcd"), max_size=2, unique=True),
            }
        )
        | st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner}, optional={"minItems": LENGTHS, "maxItems": LENGTHS}
        )
        | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)})
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(FITTING, st.integers(0, 2**32))
def test_a_required_call_has_arguments_that_fit_a_strict_schema_or_the_schema_is_refused(
    compiler: Compiler, schema: Any, seed: int
) -> None:
    parameters = {"type": "object", "properties": {"value": schema}, "required": ["value"]}
    try:
        wanted = tool(parameters, strict=True)
    except ApiError as error:
        assert error.code == "invalid_request"
        assert (error.param or "").startswith("tools[0]")
        assume(False)
    assert wanted.grammar is not None
    parts = AnswerReader().feed(spoken(compiler, wanted.grammar, seed))
    assert parts[0] == CallStart("f")
    arguments = json.loads("".join(part.text for part in parts if isinstance(part, ArgumentsPart)))
    jsonschema.validate(arguments, parameters)


SIZES = st.sampled_from([0, 1, 2, 100, 512, 513, 5000, 20_000, -1, 1 << 70])
NAMES = st.text(max_size=6) | st.sampled_from(['"', "\\", "<|im_end|>", "茶", "\x00", "]{999}", "root", "ws ::= "])
LEAVES = (
    st.fixed_dictionaries({"type": st.just("string")}, optional={"minLength": SIZES, "maxLength": SIZES})
    | st.fixed_dictionaries({"type": st.sampled_from(["integer", "number", "boolean", "null", "object", "array"])})
    | st.fixed_dictionaries({"enum": st.lists(NAMES | st.integers() | st.none(), max_size=4)})
    | st.sampled_from([{"$ref": "#"}, {"$ref": "#/$defs/a"}, {"$ref": "#/properties"}, True, False, {}, None])
    | st.fixed_dictionaries(
        {"pattern": PATTERNS | st.text("(a|)*+?[]{2,}^$.\\\\d-", max_size=12)}, optional={"maxLength": SIZES}
    )
    | NUMERIC
    | st.fixed_dictionaries({"type": st.just("string"), "format": st.sampled_from(["date", "time", "uuid", "no"])})
)
HOSTILE = st.recursive(
    LEAVES,
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=5)},
            optional={"required": st.lists(NAMES, max_size=3), "additionalProperties": inner},
        )
        | st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner}, optional={"minItems": SIZES, "maxItems": SIZES}
        )
        | st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=6)})
        | st.fixed_dictionaries({"allOf": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"$defs": st.fixed_dictionaries({"a": inner}), "$ref": st.just("#/$defs/a")})
    ),
    max_leaves=30,
)


async def test_a_long_chain_of_references_ends_no_engine(engine: EngineProcess) -> None:
    links = {f"d{i}": {"properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(2500)}
    grammar = Grammar(compiled({"$defs": {**links, "d2500": TEXT}, "$ref": "#/$defs/d0"}))
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=1)
    messages = [message async for message in engine.generate(Generate(1, [40], 10, sampling, "a", grammar))]
    assert isinstance(messages[-1], Finished)
    assert messages[-1].reason in ("stop", "length")


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(HOSTILE, min_size=15, max_size=25))
def test_no_schema_ends_an_engine(tiny_model: Path, schemas: list[Any]) -> None:
    asyncio.run(_survives(tiny_model, schemas))


async def _survives(tiny_model: Path, schemas: list[Any]) -> None:
    engine = EngineProcess("0", WorkerConfig(str(tiny_model), 2048, 8, MEASURED), on_change=lambda _: None)
    await engine.start()
    engine.set_threads(1)
    try:
        for number, schema in enumerate(schemas):
            grammar = Grammar(tool({"properties": {"value": schema}}).grammar or "")
            sampling = Sampling(temperature=1.0, top_p=1.0, top_k=number % 3 * 10, seed=number)
            async for message in engine.generate(Generate(number, [40], 120, sampling, "a", grammar)):
                match message:
                    case Finished():
                        assert message.reason in ("stop", "length") or message.code == "invalid_request", schema
                    case Started() | PromptProgress() | Tokens():
                        pass
    finally:
        await engine.stop()
