"""JSON schemas as output constraints: valid JSON is accepted, and other JSON is not."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from engine import Model
from engine.constraint import Compiler
from tests.support.schemas import CALL, accepts, call, compiled, spoken, tool, validate

TEXT: dict[str, Any] = {"type": "string"}


@pytest.fixture(scope="module")
def compiler(model: Model) -> Compiler:
    return Compiler(model.vocabulary)


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
