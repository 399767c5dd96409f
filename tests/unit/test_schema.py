"""JSON schemas as grammars: what comes out fits the schema, hostile ones are refused, and no engine dies of one."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import re
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine import Finished, Generate, Model, Sampling, Started, Tokens, WorkerConfig
from engine import Grammar as EngineGrammar
from engine.constraint import Grammars
from engine.process import EngineProcess
from engine.sampler import Sampler
from gateway.errors import ApiError
from gateway.protocol.calls import ArgumentsPart, CallReader, CallStart
from gateway.protocol.grammar import FORMATS, MAX_GRAMMAR, Grammar
from gateway.protocol.schema import Schema
from gateway.protocol.tools import ErrorPaths, FunctionTool, TextFormat, form
from tests.support.plans import MEASURED

TEXT: dict[str, Any] = {"type": "string"}


def compiled(schema: Any) -> str:
    grammar = Grammar("schema")
    return grammar.text(Schema(grammar, schema, param="schema").rule())


def refused(schema: Any) -> str | None:
    with pytest.raises(ApiError) as caught:
        compiled(schema)
    assert caught.value.code == "invalid_request"
    return caught.value.param


def written(model: Model, schema: Any, seed: int) -> Any:
    """JSON that random logits write under the schema."""
    return json.loads(spoken(model, compiled(schema), seed))


def spoken(model: Model, grammar: str, seed: int) -> str:
    """What random logits say under a grammar, with a liking for what closes things and for whole characters."""
    constraint = Grammars(model.vocabulary).constraint(EngineGrammar(grammar))
    sampler = Sampler(Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=seed), constraint=constraint)
    random, said = np.random.default_rng(seed), b""
    closing = [model.vocabulary.tokenize(c, special=False)[0] for c in '"}]']
    for i in range(4000):
        logits = random.standard_normal(model.vocabulary.size).astype(np.float32)
        logits[closing] += 2 + i / 100
        logits[128:256] -= 20  # bytes of which no model that has learnt UTF-8 makes nonsense
        token = sampler.draw(logits)
        if model.vocabulary.ends_generation(token):
            sampler.close()
            return said.decode()
        said += model.vocabulary.piece(token)
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
    "a pattern anywhere": {"type": "string", "pattern": "茶|te[ae]"},
    "a pattern with quotes": {"type": "string", "pattern": r'^"[^"\\\s]{1,9}"\\$'},
    "a pattern and lengths": {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$", "minLength": 1, "maxLength": 12},
    "a pattern that is shorter": {"type": "string", "pattern": "^[A-Z]", "minLength": 3, "maxLength": 5},
    "a tuple and more": {"type": "array", "prefixItems": [{"type": "null"}], "items": {"enum": [1]}, "minItems": 3},
    "a part of a tuple": {"type": "array", "prefixItems": [{"type": "null"}, {"enum": [1]}], "maxItems": 1},
    "a map of names": {
        "type": "object", "propertyNames": {"pattern": "^[a-z]{1,3}$"}, "additionalProperties": {"type": "null"},
        "minProperties": 1, "maxProperties": 3,
    },
    "values of a type": {"type": "integer", "enum": [1, "a", 2.5, True, 3]},
    "a reference with siblings": {
        "$defs": {"age": {"type": "integer", "minimum": 0}},
        "properties": {"age": {"$ref": "#/$defs/age", "maximum": 9, "description": "years"}}, "required": ["age"],
    },
    "one of several by a tag": {
        "$defs": {
            "leaf": {"type": "object", "properties": {"kind": {"const": "leaf"}, "name": {"enum": ["a", "b"]}}},
            "node": {"type": "object", "properties": {
                "kind": {"const": "node"}, "next": {"oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/node"}]},
            }},
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
    "quotes and line breaks": {"enum": ['"\\\n\t\u0001', "é"]},
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
def test_what_is_written_under_a_schema_fits_it(model: Model, name: str) -> None:
    for seed in range(6):
        jsonschema.validate(written(model, SCHEMAS[name], seed), SCHEMAS[name])


def test_chinese_is_written_as_it_is(model: Model) -> None:
    assert "茶" in compiled({"const": "茶"})
    assert written(model, {"const": {"茶": "壶"}}, 0) == {"茶": "壶"}


def nested(depth: int) -> Any:
    return TEXT if depth == 1 else {"type": "array", "items": nested(depth - 1)}


def wide(count: int) -> Any:
    return {"type": "object", "properties": {f"p{i}": TEXT for i in range(count)}}


@pytest.mark.parametrize(
    ("fits", "too_much", "param"),
    [
        (nested(16), nested(17), "schema" + ".items" * 16),
        (wide(128), wide(129), "schema.properties"),
        ({"enum": [*range(512)]}, {"enum": [*range(513)]}, "schema.enum"),
        ({"type": "string", "maxLength": 512}, {"type": "string", "maxLength": 513}, "schema.maxLength"),
        ({"type": "string", "minLength": 512}, {"type": "string", "minLength": 20_000}, "schema.minLength"),
        ({"type": "array", "maxItems": 512}, {"type": "array", "maxItems": 20_000}, "schema.maxItems"),
        ({"enum": ["x" * 60_000]}, {"enum": ["x" * 70_000]}, "schema"),
        ({"$defs": {"a": TEXT}, "$ref": "#/$defs/a"}, {"$ref": "https://example.org/schema.json"}, "schema.$ref"),
    ],
)
def test_a_schema_is_bounded(fits: Any, too_much: Any, param: str) -> None:
    assert len(compiled(fits).encode()) <= MAX_GRAMMAR
    assert refused(too_much) == param


def doubled(depth: int) -> Any:
    """A schema of a few hundred bytes whose references lead to 6 to the power of `depth` sub-schemas."""
    defs: dict[str, Any] = {f"a{i}": {"anyOf": [{"allOf": [{"$ref": f"#/$defs/a{i + 1}"}]}] * 6} for i in range(depth)}
    return {"$ref": "#/$defs/a0", "$defs": {**defs, f"a{depth}": TEXT}}


MANY = [f"{i}" for i in range(300)]


@pytest.mark.parametrize(
    "schema",
    [
        doubled(6),
        {"oneOf": [{"enum": [f"{i} {j}" for j in range(36)]} for i in range(500)]},
        {"$defs": {"a": {"enum": MANY}}, "allOf": [{"$ref": "#/$defs/a"}] * 512},
        {
            "$defs": {"a": {"properties": {name: {"enum": MANY} for name in "ab"}}},
            "oneOf": [{"$ref": "#/$defs/a"}] * 99,
        },
        {"properties": {f"{i}": {"pattern": "[" + "".join(map(chr, range(1000, 2000, 2))) + "]"} for i in range(128)}},
        {"enum": [[[]] * 20_000]},
    ],
)
def test_a_schema_costs_no_more_than_the_budget(schema: Any) -> None:
    assert (refused(schema) or "").startswith("schema")


def test_the_schemas_of_all_tools_share_one_budget() -> None:
    parameters = {"type": "object", "properties": {"a": {"oneOf": [{"const": value} for value in MANY]}}}
    tools = [FunctionTool(name=f"f{i}", parameters=parameters) for i in range(128)]
    form(tools[:1], "auto", TextFormat(), ErrorPaths())
    with pytest.raises(ApiError, match=r"^tools"):
        form(tools, "auto", TextFormat(), ErrorPaths())


def test_siblings_of_a_reference_apply_in_every_place() -> None:
    defs = {"a": {"type": "integer", "minimum": 0}}
    within = {"$ref": "#/$defs/a", "maximum": 5}
    parts = compiled({"$defs": defs, "allOf": [within]})
    assert parts == compiled({"type": "integer", "minimum": 0, "maximum": 5})
    assert parts != compiled({"$defs": defs, "allOf": [{"$ref": "#/$defs/a"}]})


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        (5, "schema"),
        (None, "schema"),
        ({"type": "text"}, "schema.type"),
        ({"type": {"a": 1}}, "schema.type"),
        ({"type": "object", "properties": []}, "schema.properties"),
        ({"type": "object", "properties": {"a": 1}}, "schema.properties.a"),
        ({"type": "object", "properties": {}, "required": "a"}, "schema.required"),
        ({"type": "array", "items": 3}, "schema.items"),
        ({"type": "array", "minItems": 4, "maxItems": 3}, "schema.maxItems"),
        ({"type": "string", "maxLength": True}, "schema.maxLength"),
        ({"type": "string", "maxLength": 1e400}, "schema.maxLength"),
        ({"enum": []}, "schema.enum"),
        ({"anyOf": {}}, "schema.anyOf"),
        ({"allOf": [{"type": "object"}, {"type": "array"}]}, "schema.allOf"),
        ({"$ref": "#/nowhere"}, "schema.$ref"),
        ({"$ref": 7}, "schema.$ref"),
        ({"type": "integer", "minimum": "1"}, "schema.minimum"),
        ({"type": "integer", "minimum": True}, "schema.minimum"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "schema"),
        ({"format": [1]}, "schema.format"),
        ({"propertyNames": {"$ref": 3}}, "schema.propertyNames.$ref"),
        ({"allOf": [{"$ref": 3}]}, "schema.allOf.$ref"),
        ({"oneOf": [{"type": [[]]}, {"type": "string"}]}, "schema.oneOf[0].type"),
        ({"enum": [1 << 64]}, "schema.enum[0]"),
        ({"const": {"a": -(1 << 63) - 1}}, "schema.const.a"),
        ({"minimum": 1 << 64}, "schema.minimum"),
        ({"properties": {"a": {"default": 10**40}}}, "schema.properties.a.default"),
        ({"maximum": float("inf")}, "schema.maximum"),
        ({"enum": [float("nan")]}, "schema.enum[0]"),
        ({"type": "number", "minimum": 1e30}, "schema"),
        ({"type": "string", "pattern": 5}, "schema.pattern"),
        ({"type": "string", "format": "date", "maxLength": 5}, "schema.maxLength"),
        ({"enum": ["a"], "type": "integer"}, "schema"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "schema.required"),
        ({"type": "array", "prefixItems": [True], "items": False, "minItems": 2}, "schema.minItems"),
    ],
)
def test_a_schema_that_is_none_or_that_nothing_fits_is_refused_by_name(schema: Any, param: str) -> None:
    assert refused(schema) == param


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "integer", "multipleOf": 3}, "multipleOf"),
        ({"type": "array", "items": TEXT, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": TEXT}, "contains"),
        ({"type": "object", "patternProperties": {"^a": TEXT}}, "patternProperties"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "object", "properties": {"a": TEXT, "b": TEXT}, "maxProperties": 1}, "maxProperties"),
        ({"not": {"type": "null"}}, "not"),
        ({"if": {"type": "null"}, "then": False}, "if"),
        ({"type": "string", "format": "regex"}, "format"),
        ({"type": "string", "format": "date", "pattern": "^2"}, "format"),
        ({"enum": ["a", "bb"], "minLength": 2}, "minLength"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"allOf": [{"properties": {"a": TEXT}, "additionalProperties": False}, {"properties": {"b": TEXT}}]}, "allOf"),
    ],
)
def test_what_no_grammar_holds_a_model_to_is_refused_by_name(schema: Any, param: str) -> None:
    assert refused(schema) == f"schema.{param}"


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "[", "a{513}", "*", "a**", "(a*)*", "(?=a)", "(?<!a)", r"(a)\1", r"\bx", r"\p{L}", "a^b", "(a$)",
        "[z-a]", "[]", "x" * 1025, "(" * 17 + "a" + ")" * 17, "((a{512}){512}){512}", "\\",
    ],
)  # fmt: skip
def test_a_pattern_that_is_none_or_cannot_be_held_to_is_refused_by_name(pattern: str) -> None:
    assert refused({"type": "string", "pattern": pattern}) == "schema.pattern"


FORMATS_READ: dict[str, Callable[[str], object]] = {
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "email": re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+\Z").match,
    "hostname": re.compile(r"(?!-)[a-zA-Z0-9-]{1,63}(?<!-)(\.(?!-)[a-zA-Z0-9-]{1,63}(?<!-))*\Z").match,
    "uri": lambda text: urllib.parse.urlsplit(text).hostname,
    "duration": re.compile(r"P(?=.)(\d+W|(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)\Z").match,
}


@pytest.mark.parametrize("name", FORMATS_READ)
def test_a_format_writes_what_others_read_within_its_lengths(model: Model, name: str) -> None:
    least, most = FORMATS[name]
    for seed in range(12):
        text = written(model, {"type": "string", "format": name}, seed)
        assert FORMATS_READ[name](text)
        assert least <= len(text) <= most
    assert set(FORMATS) == set(FORMATS_READ)


BOUNDS = st.one_of(
    st.integers(-1200, 1200), st.integers(-(10**9), 10**9), st.decimals(-50, 50, places=3).map(float), st.just(0)
)
NUMERIC = st.fixed_dictionaries(
    {"type": st.sampled_from(["integer", "number"])},
    optional=dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), BOUNDS),
)
PATTERNS = st.sampled_from(
    ["^a+$", "a", "^[a-f0-9]{4}$", r"^\d{3}-\d{4}$", r"^\S+$", "^(foo|bar)?baz", r"^[^\d\s]{2,}$", "x$", "^.*$",
     r"\w\W", "^$", "^[\u4e00-\u9fff]{1,4}$", r"^(?:[A-Z][a-z]*\.){1,3}$", '["\\\\/]', r"^\u0041\x42$", "", "^a|b$"]
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
def test_a_call_that_is_required_has_arguments_that_its_schema_takes_or_the_schema_is_refused(
    model: Model, schema: Any, seed: int
) -> None:
    parameters = {"type": "object", "properties": {"value": schema}, "required": ["value"]}
    try:
        wanted = form([FunctionTool(name="f", parameters=parameters)], "required", TextFormat(), ErrorPaths())
    except ApiError as error:
        assert error.code == "invalid_request"
        assert (error.param or "").startswith("tools[0].parameters.properties.value")
        assume(False)
    assert wanted.grammar is not None
    parts = CallReader().feed(spoken(model, wanted.grammar, seed))
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


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(HOSTILE, min_size=15, max_size=25))
def test_no_schema_ends_an_engine(tiny_model: Path, schemas: list[Any]) -> None:
    asyncio.run(_survives(tiny_model, schemas))


async def _survives(tiny_model: Path, schemas: list[Any]) -> None:
    engine = EngineProcess("0", WorkerConfig(str(tiny_model), 2048, 8, MEASURED), on_change=lambda _: None)
    await engine.start()
    engine.set_threads(1)
    try:
        for number, schema in enumerate(schemas):
            try:
                grammar = EngineGrammar(compiled(schema))
            except ApiError:
                continue
            sampling = Sampling(temperature=1.0, top_p=1.0, top_k=number % 3 * 10, seed=number)
            async for message in engine.generate(Generate(number, [40], 120, sampling, "a", grammar)):
                match message:
                    case Finished():
                        assert message.reason in ("stop", "length") or message.code == "invalid_request", schema
                    case Started() | Tokens():
                        pass
    finally:
        await engine.stop()
