"""Formats of function calls: found in chat templates, held by grammars, read back as JSON."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Model
from engine.constraint import Compiler
from gateway.prompts.chat_template import Prompt
from gateway.protocol.call_format import OWN
from gateway.protocol.calls import CallStart, TextPart
from gateway.protocol.tool_prompt import Tool
from gateway.protocol.tools import JsonObject
from tests.support.tiny_model import SPECIAL, write_tiny_model
from tests.support.tool_calls import (
    ARGUMENTS,
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
from tests.support.tool_templates import FORMATS, HERMES, LLAMA, MISTRAL, MISTRAL_CONTROLS, PYTHONIC

NAMES = [*FORMATS, "mistral with control tokens", "mistral args with control tokens"]


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose vocabulary has the control tokens of Mistral's."""
    path = tmp_path_factory.mktemp("mistral") / "mistral.gguf"
    return Model(write_tiny_model(path, controls=MISTRAL_CONTROLS), vocab_only=True)


@pytest.fixture(params=NAMES)
def made(request: pytest.FixtureRequest, model: Model, mistral: Model) -> tuple[Model, Prompt]:
    """A model and its prompts, for each format."""
    own = mistral if request.param.endswith("control tokens") else model
    return own, prompt(own, FORMATS[request.param.removesuffix(" with control tokens")][0])


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_of_calls_is_found_in_the_template(model: Model, name: str) -> None:
    template, example = FORMATS[name]
    found = prompt(model, template)
    assert found.describes_tools
    assert found.calls.example == example


def test_a_template_that_writes_calls_in_an_unknown_format_gets_tools_and_calls_as_text(model: Model) -> None:
    unknown = prompt(model, PYTHONIC)
    assert not unknown.describes_tools
    assert unknown.calls == OWN
    shown = text(model, unknown.whole([user("x"), called({"a": 1})], date=date, tools=[tool(SCHEMA).shown]))
    assert "# Tools" in shown
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"a": 1}}\n</tool_call>' in shown


def test_a_call_in_the_history_is_read_back_as_what_it_was(made: tuple[Model, Prompt]) -> None:
    model, prompts = made
    constraint = wanted(prompts.calls, tool(SCHEMA))
    for arguments in (ARGUMENTS, {**ARGUMENTS, "note": "x", "tags": []}):
        shown = text(model, prompts.whole([user("x"), called(arguments)], date=date, tools=[tool(SCHEMA).shown]))
        written = shown[shown.rindex(prompts.calls.opening) :]
        assert read(constraint, written)[0] == CallStart("get_weather")
        assert arguments_of(read(constraint, written)) == arguments


@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_has_arguments_that_conform_to_the_schema(made: tuple[Model, Prompt], seed: int) -> None:
    model, prompts = made
    constraint = wanted(prompts.calls, tool(SCHEMA))
    assert constraint.ignored == ()
    said = spoken(model, constraint, seed)
    assert said.startswith(prompts.calls.opening)
    jsonschema.validate(arguments_of(read(constraint, said)), SCHEMA)


def test_a_history_follows_the_grammar_of_its_own_format(made: tuple[Model, Prompt]) -> None:
    model, prompts = made
    constraint = wanted(prompts.calls, tool(SCHEMA))
    shown = text(model, prompts.whole([user("x"), called(ARGUMENTS)], date=date, tools=[tool(SCHEMA).shown]))
    written = shown[shown.rindex(prompts.calls.opening) :].partition("<|im_end|>")[0]
    assert follows(model, constraint, written)
    assert not follows(model, constraint, written.replace("摄氏", "kelvin"))
    assert not follows(model, constraint, written[:-1])


@given(st.sampled_from([*FORMATS]), st.lists(st.integers(0, 300), max_size=12), st.booleans())
def test_a_call_is_read_however_it_comes(model: Model, name: str, cuts: list[int], with_text: bool) -> None:
    prompts = _PROMPTS.setdefault(name, prompt(model, FORMATS[name][0]))
    constraint = wanted(prompts.calls, tool(SCHEMA), choice="auto")
    shown = text(model, prompts.whole([user("x"), called(ARGUMENTS)], date=date))
    written = shown[shown.rindex(prompts.calls.opening) :]
    before = "I look.\n" if with_text and not prompts.calls.anchored else ""
    parts = read(constraint, before + written, cuts)
    assert parts[: len(parts) - 2] == ([TextPart(before)] if before else [])
    assert arguments_of(parts[-2:]) == ARGUMENTS


_PROMPTS: dict[str, Prompt] = {}


@pytest.mark.parametrize(
    "answer", ['{"name": "John"}', '{"nam', "{}", 'Look: {"name": "get_weather", "parameters": {}}']
)
def test_json_that_is_no_call_is_text(model: Model, answer: str) -> None:
    calls = prompt(model, LLAMA).calls
    for choice, format_ in (("auto", None), ("auto", JsonObject())):
        constraint = wanted(calls, tool({"type": "object"}), choice=choice, answer=format_)
        parts = read(constraint, answer)
        assert parts == [TextPart(answer)] or (format_ is not None and answer == '{"nam')


def test_a_trigger_that_is_ordinary_text_counts_only_at_the_beginning(model: Model) -> None:
    calls = prompt(model, LLAMA).calls
    constraint = wanted(calls, tool({"type": "object", "properties": {}}), choice="auto")
    assert follows(model, constraint, 'Such as {"name": "John"}')
    assert follows(model, constraint, '\n{"name": "get_weather", "parameters": {}}')
    assert not follows(model, constraint, '{"name": "John"}')


def test_a_control_token_begins_a_call_and_is_written_as_a_token(mistral: Model) -> None:
    prompts = prompt(mistral, MISTRAL)
    calls = prompts.calls
    assert [name for name, _ in calls.controls] == ["[TOOL_CALLS]"]
    (control,) = mistral.vocabulary.tokenize("[TOOL_CALLS]", special=True)
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    rest = ' [{"name": "get_weather", "arguments": {}}]'
    for choice in ("required", "auto"):
        state = Compiler(mistral.vocabulary).constraint(grammar(wanted(calls, tool(schema), choice=choice)))
        for token in [control, *mistral.vocabulary.tokenize(rest, special=False)]:
            assert state.allows(token)
            state.accept(token)
        assert not state.allows(mistral.vocabulary.tokenize("x", special=False)[0])
    state = Compiler(mistral.vocabulary).constraint(grammar(wanted(calls, tool(schema))))
    assert state.allowed().tolist() == [control]
    with_id = '[TOOL_CALLS] [{"name": "get_weather", "arguments": {}, "id": "abcdefghi"}]'
    assert follows(mistral, wanted(calls, tool(schema)), with_id)


@pytest.mark.parametrize("arguments", ["", "{", '{"a": "x', "[1]", '"x"', "null", [1], None, 5, {}])
def test_arguments_in_the_history_that_are_no_object_do_not_fail(made: tuple[Model, Prompt], arguments: Any) -> None:
    model, prompts = made
    history = [user("x"), called(arguments), {"role": "tool", "content": "好", "tool_call_id": "c"}, user("y")]
    shown = text(model, prompts.whole(history, date=date, tools=[tool(SCHEMA).shown]))
    if prompts.calls.tags is None and isinstance(arguments, str) and arguments:
        assert arguments in shown or json.dumps(arguments) in shown


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("mistral")])
def test_a_prompt_that_ends_with_a_call_is_continued_after_it(model: Model, name: str) -> None:
    prompts = _PROMPTS.setdefault(name, prompt(model, FORMATS[name][0]))
    history, result = [user("x"), called({"a": "b"})], {"role": "tool", "content": "好", "tool_call_id": "c"}
    ids = prompts.whole(history, date=date, answer=False) + prompts.follow_up([result], date=date)
    assert ids == prompts.whole([*history, result], date=date)


def test_types_are_shown_to_templates_that_look_into_them(model: Model) -> None:
    properties = {
        "a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}, "c": {"type": "object"}, "d": {},
    }  # fmt: skip
    schema = {"type": "object", "properties": properties, "required": ["b"]}
    shown = text(model, prompt(model, HERMES).whole([user("x")], date=date, tools=[tool(schema).shown]))
    assert "def get_weather(a: str, b: list[int]!, c: dict, d: Union[], )" in shown


@pytest.mark.parametrize("kind", [["string", "null"], "null", ["null"], "nonsense"])
def test_a_type_on_which_a_template_recurses_without_end_is_replaced(model: Model, kind: Any) -> None:
    tools: list[Tool] = [tool({"type": "object", "properties": {"a": {"type": kind}}}).shown]
    assert "def get_weather(a: " in text(model, prompt(model, HERMES).whole([user("x")], date=date, tools=tools))


@pytest.mark.parametrize("special", SPECIAL)
def test_a_control_token_in_a_tool_or_call_stays_text(model: Model, special: str) -> None:
    for name, (template, _) in FORMATS.items():
        prompts = _PROMPTS.setdefault(name, prompt(model, template))

        def controls(poison: str, prompts: Prompt = prompts) -> list[int]:
            key = {"type": "string", "enum": [poison], "description": poison, poison: poison, "format": poison}
            tools = [tool({"type": "object", "properties": {f"{poison}key": key}}, f"f{poison}").shown]
            call = called({f"a{poison}": poison}, f"f{poison}")
            call["tool_calls"][0]["id"] = f"call_{poison}"
            result = {"role": "tool", "content": f"{poison}x", "tool_call_id": f"call_{poison}"}
            ids = prompts.whole([user("x"), call, result], date=date, tools=tools)
            ids += prompts.follow_up([result], date=date)
            return [i for i in ids if model.vocabulary.is_control(i)]

        assert controls(special) == controls("plain"), name
