"""Schemas that cannot be enforced: refused by name if strict, otherwise listed."""

from __future__ import annotations

from typing import Any

import pytest

from engine import Model
from engine.constraint import Compiler
from gateway.errors import ApiError
from gateway.prompts.constraints import form
from gateway.protocol.tools import ErrorPaths, FunctionTool, TextFormat
from tests.support.schema_shapes import SHAPES
from tests.support.schemas import accepts, call, compiled, refused, tool

TEXT: dict[str, Any] = {"type": "string"}


@pytest.fixture(scope="module")
def compiler(model: Model) -> Compiler:
    return Compiler(model.vocabulary)


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
