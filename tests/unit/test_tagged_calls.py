"""Function calls whose parameters have tags of their own: schemas are enforced for each parameter."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from engine import Model
from engine.constraint import Compiler
from gateway.errors import ApiError
from gateway.prompts.chat_template import Prompt
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart
from gateway.protocol.tools import FunctionTool
from tests.support.tool_calls import (
    SCHEMA,
    arguments_of,
    called,
    date,
    follows,
    grammar,
    prompt,
    read,
    spoken,
    text,
    tool,
    user,
    wanted,
)
from tests.support.tool_templates import KEYS, XML

TAGGED = {"xml": XML, "keys": KEYS}


@pytest.mark.parametrize("template", TAGGED.values(), ids=TAGGED)
def test_between_tags_a_strict_schema_is_held_for_each_parameter(model: Model, template: str) -> None:
    calls = prompt(model, template).calls
    tags = calls.tags
    assert tags is not None
    constraint = wanted(calls, tool(SCHEMA))

    def written(**values: str) -> str:
        pairs = [f"{key}{tags.assign}{value}" for key, value in values.items()]
        return f"{calls.opening}get_weather{tags.first}{tags.following.join(pairs)}{calls.closing}"

    right = {"城市": "北京\n </p", "unit": "摄氏", "days": "3", "place": '{"x": 1}', "exact": "true"}
    assert follows(model, constraint, written(**right))
    noted = dict([*right.items()][:3]) | {"note": "null"} | dict([*right.items()][3:])
    assert follows(model, constraint, written(**noted))
    assert arguments_of(read(constraint, written(**noted)))["note"] is None
    assert arguments_of(read(constraint, written(**{**noted, "note": "nullable"})))["note"] == "nullable"
    for wrong in (
        {"days": "10"}, {"days": '"3"'}, {"unit": "kelvin"}, {"城市": "x"}, {"城市": "x" * 21}, {"exact": "yes"},
        {"place": "{}"}, {"other": "1"},
    ):  # fmt: skip
        assert not follows(model, constraint, written(**{**right, **wrong})), wrong
    assert not follows(model, constraint, written(城市="北京"))


UNIONS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"type": ["string", "integer"]}, {"x y": "x y", "7": 7, "7.5": "7.5", '"q"': '"q"'}, []),
    ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]}, {"abc": "abc", "12345": 12345}, ["abcd"]),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
     {"a": "a", '["a"]': ["a"]}, ["[1]", "[1"]),
    ({"enum": ["a", 1, None]}, {"a": "a", "1": 1, "null": None}, ["b", '"a"', "2"]),
    ({"enum": ["1", "a", 2]}, {"a": "a", "2": 2}, ["1"]),
    ({"anyOf": [{"enum": ["a"]}, {"type": "object", "properties": {}, "additionalProperties": False}]},
     {"a": "a", "{}": {}}, ["b", '{"a": 1}']),
    ({"anyOf": [{"type": "string", "minLength": 2}, {"type": "null"}]}, {"ab": "ab", "null": None}, ["a"]),
    ({"anyOf": [{"type": "string"}, {"allOf": [{"type": "integer"}]}]}, {'"a"': "a", "1": 1}, ["a"]),
]  # fmt: skip


@pytest.mark.parametrize("template", TAGGED.values(), ids=TAGGED)
@pytest.mark.parametrize(("schema", "valid", "invalid"), UNIONS, ids=lambda value: str(value)[:40])
def test_strings_of_a_union_are_written_bare_between_tags(
    model: Model, template: str, schema: dict[str, Any], valid: dict[str, Any], invalid: list[str]
) -> None:
    prompts = _PROMPTS.setdefault(template, prompt(model, template))
    calls, tags = prompts.calls, prompts.calls.tags
    assert tags is not None
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    constraint = wanted(calls, tool(parameters, "f"))
    for value in [*valid, *invalid]:
        written = f"{calls.opening}f{tags.first}a{tags.assign}{value}{calls.closing}"
        assert follows(model, constraint, written) is (value in valid), value
        if value in valid:
            assert arguments_of(read(constraint, written)) == {"a": valid[value]}
            jsonschema.validate(valid[value], schema)
            if "allOf" not in str(schema):
                history = prompts.whole([user("x"), called({"a": valid[value]}, "f")], date=date)
                assert written in text(model, history)


@pytest.mark.parametrize("template", TAGGED.values(), ids=TAGGED)
@pytest.mark.parametrize("keyword", [{"pattern": "^a"}, {"format": "date"}], ids=str)
def test_what_text_between_tags_cannot_hold_is_refused_or_listed(
    model: Model, template: str, keyword: dict[str, Any]
) -> None:
    calls = prompt(model, template).calls
    schema = {"type": "object", "properties": {"a": {"type": "string", **keyword}}, "minProperties": 1}
    with pytest.raises(ApiError) as caught:
        wanted(calls, tool(schema))
    assert caught.value.param == "tools[0].parameters.minProperties"
    with pytest.raises(ApiError) as caught:
        wanted(calls, tool({"type": "object", "properties": schema["properties"]}))
    path = f"tools[0].parameters.properties.a.{next(iter(keyword))}"
    assert caught.value.param == path
    lenient = FunctionTool(name="f", parameters=schema)
    assert wanted(calls, lenient).ignored == ("tools[0].parameters.minProperties", path)


@pytest.mark.parametrize("template", TAGGED.values(), ids=TAGGED)
def test_a_function_without_declared_parameters_takes_any(model: Model, template: str) -> None:
    calls = prompt(model, template).calls
    tags = calls.tags
    assert tags is not None
    constraint = wanted(calls, FunctionTool(name="f", parameters={}))
    none = f"{calls.opening}f{tags.empty}"
    assert follows(model, constraint, none)
    assert read(constraint, none) == [CallStart("f"), ArgumentsPart("{}")]
    some = f"{calls.opening}f{tags.first}a{tags.assign}x y{tags.following}b{tags.assign}[1]{calls.closing}"
    assert follows(model, constraint, some)
    assert arguments_of(read(constraint, some)) == {"a": "x y", "b": [1]}
    closed = wanted(calls, tool({"type": "object", "properties": {}, "additionalProperties": False}, "f"))
    assert follows(model, closed, none)
    assert not follows(model, closed, some)


@pytest.mark.parametrize(
    ("parameters", "refused"),
    [
        ({"properties": {"a": {"$ref": "#"}}}, "properties.a.$ref"),
        ({"properties": {"a": {"type": "integer", "not": {}}}}, "properties.a.not"),
        ({"properties": {"a": {"type": "string", "minLength": -1}}}, "properties.a.minLength"),
        ({"properties": {"<b>": {}}, "required": ["<b>"]}, "properties.<b>"),
        ({"properties": [1], "required": "x", "additionalProperties": {"type": "integer"}}, "additionalProperties"),
        ({"anyOf": [{"properties": {"a": {}}}]}, "anyOf"),
        ({"patternProperties": {"^a": {"type": "string"}}}, "patternProperties"),
    ],
    ids=str,
)
def test_no_schema_refuses_a_tool_without_strict(model: Model, parameters: dict[str, Any], refused: str) -> None:
    for template in TAGGED.values():
        calls = prompt(model, template).calls
        constraint = wanted(calls, FunctionTool(name="f", parameters={"type": "object", **parameters}))
        assert constraint.ignored == (f"tools[0].parameters.{refused}",)
        Compiler(model.vocabulary).constraint(grammar(constraint))
        with pytest.raises(ApiError) as caught:
            wanted(calls, tool({"type": "object", **parameters}))
        assert caught.value.param == f"tools[0].parameters.{refused}"


def test_a_schema_may_be_a_reference_to_its_definitions(model: Model) -> None:
    properties = {"x": {"type": "integer"}, "in": {"$ref": "#/$defs/P"}}
    place = {"type": "object", "properties": properties, "required": ["x"], "additionalProperties": False}
    calls = prompt(model, KEYS).calls
    constraint = wanted(calls, tool({"$ref": "#/$defs/P", "$defs": {"P": place}}, "f"))
    written = "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>{}</arg_value>\n<arg_key>in</arg_key>\n<arg_value>{}"
    assert follows(model, constraint, written.format("5", '{"x": 7}') + calls.closing)
    assert not follows(model, constraint, written.format("5", '{"x": "7"}') + calls.closing)


_PROMPTS: dict[str, Prompt] = {}


def test_a_string_between_tags_is_passed_on_as_it_comes(model: Model) -> None:
    calls = prompt(model, XML).calls
    constraint = wanted(calls, tool({"type": "object", "properties": {"a": {"type": "string"}}}, "f"))
    reader = AnswerReader(calls, parameters=constraint.parameters)
    assert reader.feed('<tool_call>\n<function=f>\n<parameter=a>\nfirst "line"\n') == [
        CallStart("f"), ArgumentsPart('{"a": '), ArgumentsPart('"first \\"line\\"'),
    ]  # fmt: skip
    assert reader.feed("x") == [ArgumentsPart("\\nx")]
    end = reader.feed("\n</parameter>\n</function>\n</tool_call>")
    assert "".join(part.text for part in end if isinstance(part, ArgumentsPart)) == '"}'


@pytest.mark.parametrize("name", TAGGED)
@pytest.mark.parametrize(
    ("bounds", "place"), [({"minLength": 4_000}, ".properties.a.minLength"), ({"minLength": 5, "maxLength": 2}, "")]
)
def test_a_text_between_tags_whose_bounds_no_grammar_can_hold_refuses_only_strict_tools(
    model: Model, name: str, bounds: dict[str, int], place: str
) -> None:
    calls = prompt(model, TAGGED[name]).calls
    hard = {"type": "object", "properties": {"a": {"type": "string", **bounds}}}
    lenient = FunctionTool(name="a", parameters=hard)
    for tools in ([lenient], [tool(SCHEMA), lenient]):
        constraint = wanted(calls, *tools)
        assert constraint.ignored == (f"tools[{len(tools) - 1}].parameters{place}",)
        spoken(model, constraint, 1)
    with pytest.raises(ApiError, match=rf"tools\[0\]\.parameters{place}: it cannot be enforced"):
        wanted(calls, tool(hard))
