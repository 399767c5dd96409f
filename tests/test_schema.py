"""JSON schemas as grammars: what comes out fits the schema, hostile ones are refused, and no engine dies of one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import EngineProcess, Finished, Generate, Model, Sampling, Started, Tokens, WorkerConfig
from engine import Grammar as EngineGrammar
from engine.constraint import Grammars
from engine.sampler import Sampler
from gateway.errors import ApiError
from gateway.protocol.grammar import MAX_GRAMMAR, Grammar
from gateway.protocol.schema import Schema
from tests.plans import MEASURED

TEXT: dict[str, Any] = {"type": "string"}


def compiled(schema: Any, *, strict: bool = False) -> str:
    grammar = Grammar("schema")
    return grammar.text(Schema(grammar, schema, param="schema", strict=strict).rule())


def refused(schema: Any, *, strict: bool = False) -> str | None:
    with pytest.raises(ApiError) as caught:
        compiled(schema, strict=strict)
    assert caught.value.code == "invalid_request"
    return caught.value.param


def written(model: Model, schema: Any, seed: int) -> Any:
    """JSON that random logits write under the schema, with a liking for what closes things and for whole characters."""
    constraint = Grammars(model.vocabulary).constraint(EngineGrammar(compiled(schema)))
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
            return json.loads(said)
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
    ],
)
def test_a_schema_that_is_none_is_refused_by_name(schema: Any, param: str) -> None:
    assert refused(schema) == param


def test_what_cannot_be_guaranteed_is_refused_only_where_a_guarantee_is_asked_for() -> None:
    compiled({"type": "string", "pattern": "^a+$"})
    assert refused({"type": "string", "pattern": "^a+$"}, strict=True) == "schema"


SIZES = st.sampled_from([0, 1, 2, 100, 512, 513, 5000, 20_000, -1, 1 << 70])
NAMES = st.text(max_size=6) | st.sampled_from(['"', "\\", "<|im_end|>", "茶", "\x00", "]{999}", "root", "ws ::= "])
LEAVES = (
    st.fixed_dictionaries({"type": st.just("string")}, optional={"minLength": SIZES, "maxLength": SIZES})
    | st.fixed_dictionaries({"type": st.sampled_from(["integer", "number", "boolean", "null", "object", "array"])})
    | st.fixed_dictionaries({"enum": st.lists(NAMES | st.integers() | st.none(), max_size=4)})
    | st.sampled_from([{"$ref": "#"}, {"$ref": "#/$defs/a"}, {"$ref": "#/properties"}, True, False, {}, None])
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
