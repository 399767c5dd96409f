"""Function tools and JSON answers: what is taken, what is read out of an answer, and real models held to it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from engine import Grammar, Model
from engine.constraint import Compiler
from gateway.errors import ApiError
from gateway.prompts.constraints import form
from gateway.protocol.answer import Answer
from gateway.protocol.call_format import OWN
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart, Part, TextPart
from gateway.protocol.events import Event, Usage
from gateway.protocol.items import input_item, messages
from gateway.protocol.requests import ResponseCreate, parse
from gateway.protocol.response_events import ResponseEvents
from gateway.protocol.tools import OutputConstraint
from tests.support.events import check_types, flat, numbered
from tests.support.running import Gateway

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city. 查询天气。",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["摄氏", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
TIME: dict[str, Any] = {"type": "function", "name": "get_time"}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'


def create(**fields: Any) -> ResponseCreate:
    message = parse(json.dumps({"type": "response.create", "input": "x", **fields}))
    assert isinstance(message, ResponseCreate)
    return message


def wanted(**fields: Any) -> OutputConstraint:
    request = create(**fields)
    return form(request.functions, request.choice, request.format, request.error_paths)


def refused(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        wanted(**fields)
    return caught.value.code, caught.value.param


def joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one."""
    whole: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart | ArgumentsPart) and whole and type(whole[-1]) is type(part):
            whole[-1] = type(part)(whole[-1].text + part.text)
        else:
            whole.append(part)
    return whole


def parts(text: str, cuts: list[int] | None = None, *, whole: bool = False) -> list[Part]:
    reader, read, start = AnswerReader(whole=whole), list[Part](), 0
    for cut in [*sorted(cuts or []), len(text)]:
        read += reader.feed(text[start:cut])
        start = cut
    return joined(read + reader.finish())


@given(st.lists(st.integers(0, len(CALL) + 10), max_size=12))
def test_a_call_is_read_however_it_comes(cuts: list[int]) -> None:
    called = [CallStart("get_weather"), ArgumentsPart('{"city": "北京"}')]
    assert parts(CALL, cuts) == called
    assert parts(f"Let me see.\n{CALL}", cuts) == [TextPart("Let me see.\n"), *called]


@given(st.text(alphabet='<tool_cal>/}\n{" :x', max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_text_without_a_call_comes_out_as_it_went_in(text: str, cuts: list[int]) -> None:
    assume(OWN.trigger not in text)
    assert "".join(part.text for part in parts(text, cuts) if isinstance(part, TextPart)) == text


@pytest.mark.parametrize("text", ["<tool_call>" + "x" * 200, "a <", "<tool_c"])
def test_what_is_no_call_after_all_is_text(text: str) -> None:
    assert parts(text) == [TextPart(text)]


@pytest.mark.parametrize("length", [*range(1, 36)])
def test_nothing_of_a_required_call_is_text_wherever_it_is_cut_off(length: int) -> None:
    assert parts(CALL[:length], whole=True) == []
    if length >= len(OWN.trigger):
        assert parts(f"I look. {CALL[:length]}") == [TextPart("I look. ")]


def test_a_call_that_was_cut_off_keeps_its_arguments_so_far() -> None:
    assert parts(CALL.removesuffix("}}\n</tool_call>")) == [CallStart("get_weather"), ArgumentsPart('{"city": "北京"')]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tool_choice": "required"}, "invalid_request", "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": "other"}}, "invalid_request", "tool_choice"),
        ({"tools": [TIME], "tool_choice": "perhaps"}, "invalid_request", "tool_choice"),
        ({"tools": [TIME, TIME]}, "invalid_request", "tools"),
        ({"tools": [{**TIME, "name": "a b"}]}, "invalid_request", "tools[0].name"),
        ({"tools": [TIME] * 129}, "invalid_request", "tools"),
        (
            {"tools": [{**TIME, "strict": True, "parameters": {"type": "array"}}]},
            "invalid_request",
            "tools[0].parameters.type",
        ),
        (
            {"tools": [TIME, {**TIME, "name": "f", "strict": True, "parameters": {"$ref": "http://x"}}]},
            "invalid_request",
            "tools[1].parameters.$ref",
        ),
        ({"tools": [{"type": "file_search"}], "tool_choice": "required"}, "unsupported_parameter", "tools"),
        ({"tools": [TIME], "tool_choice": {"type": "file_search"}}, "unsupported_parameter", "tool_choice"),
        ({"text": {"format": {"type": "yaml"}}}, "invalid_request", "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "string", "maxLength": -1}}}},
            "invalid_request",
            "text.format.schema.maxLength",
        ),
        ({"top_logprobs": 2}, "invalid_request", "top_logprobs"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "invalid_request", "top_logprobs"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_its_name(fields: dict[str, Any], code: str, param: str) -> None:
    assert refused(**fields) == (code, param)


def fits(model: Model, asked: OutputConstraint, text: str) -> bool:
    """Whether a form lets a model say `text`, and end there."""
    assert asked.grammar is not None
    compiler = Compiler(model.vocabulary)
    constraint = compiler.constraint(Grammar(asked.grammar))
    for token in model.vocabulary.tokenize(text, special=False):
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return any(constraint.allows(int(end)) for end in compiler.ends)


def test_a_form_lets_through_what_was_asked_for_and_nothing_else(model: Model) -> None:
    call = CALL.replace('"北京"', '"北京", "unit": "摄氏"')
    time = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    required = wanted(tools=[WEATHER, TIME], tool_choice="required")
    assert fits(model, required, call)
    assert fits(model, required, time)
    assert not fits(model, required, CALL)
    assert not fits(model, required, "No.")
    named = wanted(tools=[WEATHER, TIME], tool_choice={"type": "function", "name": "get_time"})
    assert fits(model, named, time)
    assert not fits(model, named, call)
    both = wanted(tools=[WEATHER, TIME], text={"format": {"type": "json_object"}})
    assert fits(model, both, time)
    assert fits(model, both, '{"茶": [1, true, null]}')
    assert not fits(model, both, "[1]")
    assert not wanted(tools=[TIME]).whole
    assert fits(model, wanted(tools=[TIME]), f"I look. {time}")
    assert fits(model, wanted(tools=[TIME]), "No <tool_cal.")
    assert not fits(model, wanted(tools=[TIME]), "I look. <tool_call>x")
    assert not fits(model, wanted(tools=[TIME]), call)
    assert wanted() == wanted(tools=[TIME], tool_choice="none") == OutputConstraint()


def emitted(text: str, step: int, **fields: Any) -> list[Event]:
    request = create(**fields)
    events = ResponseEvents(
        request, response_id="resp_1", model="m", clock=lambda: 1.5, temperature=0.7, top_p=0.8, max_output_tokens=9
    )
    wanted_form = form(request.functions, request.choice, request.format, request.error_paths)
    answer = Answer(events, form=wanted_form, new_id=lambda prefix: f"{prefix}_1")
    sent: list[Event] = [events.created(), events.in_progress(), *answer.begin()]
    for start in range(0, len(text), step):
        sent += answer.feed(text[start : start + step])
    return [*sent, *answer.finish(), *flat(events.completed(Usage(1, 0, 1)))]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_call_is_sent_in_the_events_that_clients_know(step: int) -> None:
    sent = numbered(emitted(f"I look.\n{CALL}", step, tools=[WEATHER]))
    for event in sent:
        check_types(event)
    message, call = sent[-1]["response"]["output"]
    assert message["content"][0]["text"] == "I look.\n"
    assert (call["id"], call["call_id"], call["name"]) == ("fc_1", "call_1", "get_weather")
    assert json.loads(call["arguments"]) == {"city": "北京"}
    deltas = [event["delta"] for event in sent if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call["arguments"]
    assert [event["output_index"] for event in sent if event["type"] == "response.output_item.done"] == [0, 1]
    assert sent[-1]["response"]["parallel_tool_calls"] is False
    assert sent[-1]["response"]["tools"][0]["name"] == "get_weather"


def test_an_answer_without_tools_begins_before_its_first_token() -> None:
    kinds = [event.type for event in emitted("", 1)]
    assert kinds[2:4] == ["response.output_item.added", "response.content_part.added"]
    assert [event.type for event in emitted("", 1, tools=[TIME])].count("response.output_item.done") == 1


def test_calls_and_their_outputs_become_messages_of_the_template() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": "茶"}', "id": "fc_1"}
    output = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "好"}]}
    request = create(input=[{"role": "user", "content": "x"}, call, output])
    items = [input_item(item, lambda prefix: f"{prefix}_9") for item in request.items]
    assert [item["id"] for item in items] == ["msg_9", "fc_9", "fco_9"]
    said = messages(items)
    assert [m["role"] for m in said] == ["user", "assistant", "tool"]
    assert said[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": "茶"}}
    assert (said[2]["content"], said[2]["name"]) == ("好", "f")
    assert messages(items[2:], items[:2]) == said[2:]


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_a_model_that_must_call_a_function_does_so_with_arguments_that_fit(
    server: Gateway, choice: Any, temperature: float
) -> None:
    async with server.connect() as conversation:
        events = await conversation.ask(
            "北京天气怎么样?", tools=[WEATHER], tool_choice=choice, temperature=temperature, top_k=0, top_p=1, seed=1
        )
    assert events[-1].type == "response.completed"
    (call,) = events[-1].response.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    jsonschema.validate(json.loads(call.arguments), WEATHER["parameters"])


async def test_a_required_call_that_is_cut_off_in_its_header_is_an_empty_message(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        for tokens in (3, 14, 25):
            events = await conversation.ask("x", tools=[TIME], tool_choice="required", max_output_tokens=tokens)
            assert events[-1].type == "response.incomplete"
            [message] = events[-1].response.output
            assert [part.text for part in message.content] == [""]


async def test_an_answer_that_is_cut_off_ends_before_an_unfinished_character_and_can_be_continued(
    shared_server: Gateway,
) -> None:
    tea = {"format": {"type": "json_schema", "name": "tea", "schema": {"const": "茶茶"}}}
    request = {"type": "response.create", "input": "x", "text": tea}
    # After the answer: the end of its turn, the new message, and the beginning of the next turn. A token is a byte.
    follow_up = len("\nuser\nx\nassistant\n") + len(["<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>"])
    async with shared_server.connect() as conversation:
        for tokens, text in ((3, '"'), (4, '"茶'), (6, '"茶')):
            await conversation.send({**request, "max_output_tokens": tokens})
            events = await conversation.events()
            last = events[-1].response
            assert last.output[0].content[0].text == text
            assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
            await conversation.send({**request, "max_output_tokens": 1, "previous_response_id": last.id})
            following = (await conversation.events())[-1].response
            assert following.usage.input_tokens == last.usage.input_tokens + len(text.encode()) + follow_up


async def test_log_probabilities_come_with_the_text_and_add_up_to_it(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        events = await conversation.ask(
            "x", include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=9, temperature=0
        )
        plain = await conversation.ask("x", max_output_tokens=3)
    entries = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert len(entries) == events[-1].response.usage.output_tokens
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries)
    part = events[-1].response.output[0].content[0]
    assert [entry.logprob for entry in part.logprobs] == [entry.logprob for entry in entries]
    assert b"".join(bytes(entry.bytes) for entry in part.logprobs).decode(errors="replace") == part.text
    assert all(event.logprobs == [] for event in plain if event.type == "response.output_text.delta")


async def test_keywords_that_are_not_enforced_are_listed_when_the_response_is_created(shared_server: Gateway) -> None:
    tool = {**TIME, "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    async with shared_server.connect() as conversation:
        events = await conversation.ask("x", tools=[tool], max_output_tokens=2)
        assert events[0].ignored == ["tools[].parameters.properties.a.not"]
        await conversation.send(
            {"type": "response.create", "input": "x", "tools": [{**tool, "strict": True}], "max_output_tokens": 2}
        )
        error = (await conversation.events())[-1]
        assert (error.error.code, error.error.param) == ("invalid_request", "tools[0].parameters.properties.a.not")
        assert (await conversation.ask("x", max_output_tokens=2))[-1].type == "response.incomplete"


@pytest.mark.slow
async def test_a_small_model_calls_a_function_and_speaks_of_its_result(server: Gateway) -> None:
    async with server.connect() as conversation:
        first = await conversation.ask(
            "What is the weather in Paris?", tools=[WEATHER, TIME], tool_choice="required", temperature=0
        )
        assert first[-1].type == "response.completed"
        (call,) = first[-1].response.output
        if call.name == "get_weather":
            jsonschema.validate(json.loads(call.arguments), WEATHER["parameters"])
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 25 degrees."}
        await conversation.send(
            {"type": "response.create", "input": [output], "tools": [WEATHER, TIME], "tool_choice": "none",
             "previous_response_id": first[-1].response.id, "temperature": 0, "max_output_tokens": 40}
        )  # fmt: skip
        second = await conversation.events()
    usage = second[-1].response.usage
    assert second[-1].response.output[0].type == "message"
    seen = first[-1].response.usage
    assert usage.input_tokens_details.cached_tokens >= seen.input_tokens + seen.output_tokens - 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_a_small_model_answers_in_json_when_it_must(server: Gateway, seed: int) -> None:
    client = AsyncOpenAI(api_key="none", base_url=server.url + "/v1")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    response = await client.responses.create(
        model="smollm2-135m-instruct",
        input="Invent a person.",
        text={"format": {"type": "json_schema", "name": "person", "schema": schema, "strict": True}},
        extra_body={"seed": seed},
        temperature=1.0,
    )
    jsonschema.validate(json.loads(response.output_text), schema)
    await client.close()
