"""Formats of function calls: found in chat templates, held by grammars, read back as JSON."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Grammar, Model, Sampling
from engine.constraint import Compiler
from engine.sampler import Sampler
from gateway.errors import ApiError
from gateway.prompts.chat_template import Prompt
from gateway.prompts.constraints import form
from gateway.protocol.call_format import OWN, CallFormat
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart, Part, TextPart
from gateway.protocol.tool_prompt import Message, Tool
from gateway.protocol.tools import ErrorPaths, FunctionTool, JsonObject, OutputConstraint, TextFormat
from tests.support.tiny_model import SPECIAL, write_tiny_model
from tests.support.tool_templates import FORMATS, HERMES, KEYS, LLAMA, MISTRAL, MISTRAL_CONTROLS, PYTHONIC, XML

TAGGED = {"xml": XML, "keys": KEYS}
NAMES = [*FORMATS, "mistral with control tokens", "mistral args with control tokens"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"],
                        "additionalProperties": False}},
    "properties": {
        "城市": {"type": "string", "minLength": 2, "maxLength": 20},
        "unit": {"enum": ["摄氏", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "place": {"$ref": "#/$defs/Place"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "exact": {"type": "boolean"},
    },
    "required": ["城市", "unit", "days", "place", "exact"],
    "additionalProperties": False,
}  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "城市": 'a "b"\n\n\\ </x> {茶', "unit": "摄氏", "days": 3, "note": None, "place": {"x": 1.5}, "tags": ["a", "7"],
    "exact": True,
}  # fmt: skip


def prompt(model: Model, template: str) -> Prompt:
    marks = itertools.count()
    return Prompt(template, model.vocabulary, mark=lambda: f"{next(marks):032x}")


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


def text(model: Model, ids: list[int]) -> str:
    """The ids as text, control tokens by their names."""
    pieces = ((model.vocabulary.piece(i) or model.vocabulary.text(i).encode()) for i in ids)
    return b"".join(pieces).decode()


def date(_: str) -> str:
    return "1 Dec 2026"


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def called(arguments: Any, name: str = "get_weather") -> Message:
    call = {"type": "function", "id": "call_" + "a" * 32, "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def tool(schema: dict[str, Any], name: str = "get_weather") -> FunctionTool:
    return FunctionTool(name=name, description="天气", parameters=schema, strict=True)


def wanted(calls: CallFormat, *tools: FunctionTool, choice: Any = "required", answer: Any = None) -> OutputConstraint:
    return form(tools, choice, answer or TextFormat(), ErrorPaths(), calls)


def grammar(constraint: OutputConstraint) -> Grammar:
    return Grammar(constraint.grammar or "", constraint.controls)


def read(constraint: OutputConstraint, answer: str, cuts: list[int] | None = None) -> list[Part]:
    """What a reader finds in an answer that comes in pieces; neighbours of one kind as one."""
    reader = AnswerReader(constraint.calls or OWN, whole=constraint.whole, parameters=constraint.parameters)
    found: list[Part] = []
    for start, end in itertools.pairwise([0, *sorted(cuts or []), max(len(answer), *(cuts or [0]))]):
        found += reader.feed(answer[start:end])
    whole: list[Part] = []
    for part in [*found, *reader.finish()]:
        if whole and isinstance(part, TextPart | ArgumentsPart) and type(whole[-1]) is type(part):
            whole[-1] = type(part)(whole[-1].text + part.text)
        else:
            whole.append(part)
    return whole


def arguments_of(parts: list[Part]) -> Any:
    start, arguments = parts
    assert isinstance(start, CallStart)
    assert isinstance(arguments, ArgumentsPart)
    return json.loads(arguments.text)


def spoken(model: Model, constraint: OutputConstraint, seed: int) -> str:
    """An answer of random logits, in which texts end after a while."""
    vocabulary, compiler, calls = model.vocabulary, Compiler(model.vocabulary), constraint.calls
    sampler = Sampler(
        Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=seed), constraint=compiler.constraint(grammar(constraint))
    )
    random, said = np.random.default_rng(seed), ""
    stop = calls.tags.stop if calls is not None and calls.tags is not None else '"'
    closing = [vocabulary.tokenize(char, special=False)[0] for char in '"}],']
    for i in range(1500):
        logits = random.standard_normal(vocabulary.size).astype(np.float32)
        logits[closing] += 2 + i / 100
        logits[compiler.ends] += 5
        logits[128:256] -= 20  # bytes of multi-byte characters
        done = max(n for n in range(len(stop)) if said.endswith(stop[:n]))
        if done or random.random() < 0.2:
            logits[vocabulary.tokenize(stop[done], special=False)] += 9
        token = sampler.draw(logits)
        if vocabulary.ends_generation(token):
            return said.encode("latin-1").decode()
        piece = vocabulary.text(token) if token in constraint.controls else vocabulary.piece(token).decode("latin-1")
        said += piece
    raise AssertionError(said)


def follows(model: Model, constraint: OutputConstraint, answer: str) -> bool:
    """Whether a constraint lets a model write `answer`, and end there."""
    compiler = Compiler(model.vocabulary)
    state = compiler.constraint(grammar(constraint))
    for token in model.vocabulary.tokenize(answer, special=True):
        if not state.allows(token):
            return False
        state.accept(token)
    return any(state.allows(int(end)) for end in compiler.ends)


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
