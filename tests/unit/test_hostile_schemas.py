"""Random, large and hostile schemas: each is enforced or refused, and none ends an engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine import Finished, Generate, Grammar, Model, PromptProgress, Sampling, Started, Tokens, WorkerConfig
from engine.constraint import Compiler
from engine.process import EngineProcess
from gateway.errors import ApiError
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart
from tests.support.plans import MEASURED
from tests.support.schemas import compiled, spoken, tool

TEXT: dict[str, Any] = {"type": "string"}


@pytest.fixture(scope="module")
def compiler(model: Model) -> Compiler:
    return Compiler(model.vocabulary)


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
