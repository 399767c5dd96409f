"""Ollama's API: its requests become those of chat completions, and events become its answers."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import ApiError, QueueTimeoutError
from gateway.protocol.chat import read_chat
from gateway.protocol.events import Event, Usage
from gateway.protocol.log import EventLog, Reader
from gateway.protocol.ollama import Translated, read_ollama_chat, read_ollama_generate
from gateway.protocol.ollama_answers import Durations, OllamaAnswer, Piece, timestamp
from gateway.protocol.output_items import CallItem, MessageItem, ReasoningItem
from gateway.protocol.reasoning import Reasoning, ReasoningText
from gateway.protocol.requests import (
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    ResponseCreate,
)
from gateway.protocol.response_events import ResponseEvents
from gateway.protocol.text import TextRequest, read_text
from gateway.protocol.tools import JsonObject, JsonSchema
from tests.support.events import flat

USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
WEATHER = {"name": "get_weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}}
CREATED = "1970-01-01T00:00:01.500000Z"


def chat(**fields: Any) -> Translated:
    return read_ollama_chat({"model": "m", "messages": [USER], **fields})


def generate(**fields: Any) -> Translated:
    return read_ollama_generate({"model": "m", "prompt": "Hi", **fields})


def refused(read: Any, **fields: Any) -> tuple[str, str | None, str]:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    return caught.value.code, caught.value.param, caught.value.message


def test_a_conversation_becomes_the_same_request_as_a_chat_completion() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "a"}, USER]
    tools = [{"type": "function", "function": WEATHER}]
    ours = chat(messages=messages, tools=tools, options={"temperature": 0.5, "num_predict": 7, "stop": ["x"]}).request
    theirs, _ = read_chat(
        {
            "model": "m",
            "messages": messages,
            "tools": tools,
            "temperature": 0.5,
            "max_completion_tokens": 7,
            "stop": ["x"],
        }
    )
    different = {"truncation", "ignored"}
    for name in set(theirs.__struct_fields__) - different:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.is_stored, ours.is_ephemeral) == (False, False)


def test_options_have_their_effect() -> None:
    options = {
        "temperature": 0.1, "top_p": 0.2, "top_k": 3.0, "min_p": 0.4, "repeat_penalty": 1.1, "seed": 5,
        "num_predict": 6, "stop": ["a", "b"], "presence_penalty": 0.7, "frequency_penalty": 0.8,
    }  # fmt: skip
    request = chat(options=options).request
    assert (request.temperature, request.top_p, request.top_k, request.min_p) == (0.1, 0.2, 3, 0.4)
    assert (request.repeat_penalty, request.seed, request.max_output_tokens) == (1.1, 5, 6)
    assert (request.presence_penalty, request.frequency_penalty, request.stops) == (0.7, 0.8, ("a", "b"))


def test_negative_numbers_stand_for_no_limit() -> None:
    request = chat(options={"num_predict": -1, "seed": -1, "top_k": -1}).request
    assert (request.max_output_tokens, request.seed, request.top_k) == (None, None, 0)
    assert chat(options={"num_predict": -2}).request.max_output_tokens is None
    assert chat(options={"num_predict": 0}).request.max_output_tokens is None


def test_hints_are_listed_as_ignored_and_refused_by_strict_fields() -> None:
    fields = {"keep_alive": "5m", "options": {"num_ctx": 2048, "mirostat": 1, "numa": None}, "shift": True}
    assert set(chat(**fields).request.ignored) == {"keep_alive", "shift", "options.num_ctx", "options.mirostat"}
    assert chat(think=False, options=None, format="", tools=[]).request.ignored == ()
    for hint in ({"keep_alive": 1}, {"options": {"num_ctx": 1}}, {"shift": True}):
        with pytest.raises(ApiError) as caught:
            read_ollama_chat({"messages": [USER], **hint}, strict_fields=True)
        assert caught.value.code == "unsupported_parameter"


def test_formats_constrain_the_answer() -> None:
    assert isinstance(chat(format="json").request.format, JsonObject)
    wanted = generate(format=SCHEMA).request.format
    assert isinstance(wanted, JsonSchema)
    assert wanted.schema == SCHEMA


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_unless_the_client_objects() -> None:
    assert chat().request.truncation == "auto"
    assert chat(truncate=True).request.truncation == "auto"
    assert chat(truncate=False).request.truncation in (None, "disabled")


def test_results_of_tools_find_their_calls_without_ids() -> None:
    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": arguments}}

    request = chat(
        messages=[
            USER,
            {"role": "assistant", "content": "", "tool_calls": [call("f", a="茶"), call("g")]},
            {"role": "tool", "content": "1", "tool_name": "g"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "tool_calls": [{"id": "own", **call("f")}]},
            {"role": "tool", "content": "3", "tool_call_id": "own"},
            {"role": "tool", "content": "4"},
        ]
    ).request
    assert request.items == [
        InputMessage("user", "Hi"),
        FunctionCall(call_id="call_1_0", name="f", arguments='{"a": "茶"}'),
        FunctionCall(call_id="call_1_1", name="g", arguments="{}"),
        FunctionCallOutput(call_id="call_1_1", output="1"),
        FunctionCallOutput(call_id="call_1_0", output="2"),
        FunctionCall(call_id="own", name="f", arguments="{}"),
        FunctionCallOutput(call_id="own", output="3"),
        FunctionCallOutput(call_id="call_6", output="4"),
    ]


def test_reasoning_of_earlier_answers_is_passed_on_to_the_template() -> None:
    request = chat(messages=[USER, {"role": "assistant", "content": "a", "thinking": "hm"}, USER]).request
    question, thought = InputMessage("user", "Hi"), Reasoning([ReasoningText("hm")])
    assert request.items == [question, thought, InputMessage("assistant", "a"), question]
    assert request.ignored == ()


def test_a_prompt_with_a_system_text_becomes_a_conversation() -> None:
    request = generate(system="Be brief.").request
    assert (request.instructions, request.items) == ("Be brief.", [InputMessage("user", "Hi")])
    assert generate(suffix="", context=[], images=[], raw=False, template="").request.ignored == ()


def test_a_raw_prompt_becomes_the_same_request_as_a_completion() -> None:
    options = {"temperature": 0.5, "num_predict": 7, "stop": "x", "num_ctx": 1}
    ours = generate(prompt="<s>Hi", raw=True, options=options, logprobs=True, top_logprobs=2).request
    theirs, _ = read_text(
        {"model": "m", "prompt": "<s>Hi", "temperature": 0.5, "max_tokens": 7, "stop": "x", "logprobs": 2}
    )
    assert isinstance(ours, TextRequest)
    for name in set(theirs.__struct_fields__) - {"ignored"}:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.route, ours.ignored) == ("ollama_generate", ("options.num_ctx",))


@pytest.mark.parametrize("empty", [chat(messages=[]), chat(messages=None), generate(prompt=""), generate(prompt=None)])
def test_a_request_with_nothing_to_answer_only_loads_the_model(empty: Translated) -> None:
    assert empty.loads
    assert empty.request.encodes_only
    assert empty.request.is_ephemeral
    assert not chat().loads


def test_answers_are_streamed_unless_the_client_objects() -> None:
    assert chat().stream
    assert chat(stream=None).stream
    assert chat(stream=True).stream
    assert not chat(stream=False).stream


def test_metrics_tell_the_two_routes_apart() -> None:
    assert (chat().request.route, generate().request.route) == ("ollama_chat", "ollama_generate")


@pytest.mark.parametrize(
    ("read", "fields", "code", "param"),
    [
        (generate, {"suffix": "x"}, "unsupported_parameter", "suffix"),
        (generate, {"images": ["aGk="]}, "unsupported_parameter", "images"),
        (generate, {"template": "{{ .Prompt }}"}, "unsupported_parameter", "template"),
        (generate, {"raw": True, "system": "x"}, "unsupported_parameter", "system"),
        (generate, {"raw": True, "format": "json"}, "unsupported_parameter", "format"),
        (generate, {"raw": True, "options": {"stop": [""]}}, "invalid_request", "options.stop"),
        (generate, {"context": [1, 2]}, "unsupported_parameter", "context"),
        (generate, {"prompt": "", "keep_alive": 0}, "unsupported_parameter", "keep_alive"),
        (chat, {"messages": [], "keep_alive": "0"}, "unsupported_parameter", "keep_alive"),
        (chat, {"messages": [{**USER, "images": ["aGk="]}]}, "unsupported_parameter", "messages[0].images"),
        (chat, {"messages": [{"role": "robot"}]}, "invalid_request", "messages[0].role"),
        (chat, {"messages": "Hi"}, "invalid_request", "messages"),
        (chat, {"options": {"temperature": 3}}, "invalid_request", "options.temperature"),
        (chat, {"options": {"stop": ["a", ""]}}, "invalid_request", "options.stop"),
        (chat, {"options": {"seed": "x"}}, "invalid_request", "options.seed"),
        (chat, {"options": []}, "invalid_request", "options"),
        (chat, {"format": "yaml"}, "invalid_request", "format"),
        (chat, {"top_logprobs": 2}, "invalid_request", "top_logprobs"),
        (chat, {"stream": 1}, "invalid_request", "stream"),
        (chat, {"tools": [{"function": {}}]}, "invalid_request", "tools[0].function"),
        (chat, {"tools": [{"function": {"name": "a b"}}]}, "invalid_request", "tools[0].function.name"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_met_is_refused_by_the_name_that_the_client_knows(
    read: Any, fields: dict[str, Any], code: str, param: str
) -> None:
    found = refused(read, **fields)
    assert found[:2] == (code, param)
    assert param in found[2]


def test_a_schema_that_is_too_deep_is_refused_by_the_name_of_the_format() -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"items": deep}
    _, param, message = refused(chat, format=deep)
    assert param is not None
    assert param.startswith("format")
    assert message.startswith("format")


def response_events() -> ResponseEvents:
    return ResponseEvents(
        ResponseCreate(input="Hi"),
        response_id="resp_1",
        model="served",
        clock=lambda: 0.0,
        temperature=0.7,
        top_p=0.8,
        max_output_tokens=1,
    )


def answer(*, is_chat: bool = True, logprobs: bool = False) -> OllamaAnswer:
    durations = Durations(total=4.0, load=1.0, prompt=0.5, answer=2.25)
    return OllamaAnswer(
        "m:latest",
        chat=is_chat,
        logprobs=logprobs,
        clock=lambda: 1.5,
        durations=lambda: durations,
    )


def pieces(events: list[Event], translator: OllamaAnswer) -> list[Piece]:
    log = EventLog()
    for event in events:
        log.append(event)
    reader, found = Reader(log), list[Piece]()
    while not reader.done:
        received = reader.next()
        assert received is not None
        found += translator.feed(received)
    return found


LAST = {
    "done": True,
    "total_duration": 4_000_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 5,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 2,
    "eval_duration": 2_250_000_000,
}


def said(events: ResponseEvents) -> list[Event]:
    return [
        events.created(),
        events.queued(1, 1.0),
        events.in_progress(),
        *events.open(MessageItem("msg_1")),
        events.delta("Hel", [{"token": "Hel", "logprob": -0.5, "bytes": [72], "top_logprobs": []}]),
    ]


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_text_is_streamed_in_pieces_and_ends_with_counts_and_times(is_chat: bool) -> None:
    def text(piece: str) -> Piece:
        return {"message": {"role": "assistant", "content": piece}} if is_chat else {"response": piece}

    events = response_events()
    head = {"model": "m:latest", "created_at": CREATED}
    found = pieces([*said(events), *flat(events.completed(Usage(5, 3, 2)))], answer(is_chat=is_chat))
    assert found == [
        {**head, **text("Hel"), "done": False},
        {**head, **text(""), **LAST, "done_reason": "stop"},
    ]


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_whole_answer_is_one_object(is_chat: bool) -> None:
    events = response_events()
    _, last = (said(events), events.completed(Usage(5, 3, 2)))
    whole = answer(is_chat=is_chat).whole(flat(last)[-1].response)  # type: ignore[attr-defined]
    text = {"message": {"role": "assistant", "content": "Hel"}} if is_chat else {"response": "Hel"}
    assert whole == {"model": "m:latest", "created_at": CREATED, **text, **LAST, "done_reason": "stop"}


def test_an_answer_that_its_limit_cut_off_says_so() -> None:
    events = response_events()
    found = pieces([*said(events), *flat(events.incomplete(Usage(5, 3, 2), "max_output_tokens"))], answer())
    assert found[-1]["done_reason"] == "length"


def test_log_probabilities_come_with_their_text_when_asked_for() -> None:
    events = response_events()
    found = pieces([*said(events), *flat(events.completed(Usage(5, 3, 2)))], answer(logprobs=True))
    assert found[0]["logprobs"] == [{"token": "Hel", "logprob": -0.5, "bytes": [72], "top_logprobs": []}]
    assert "logprobs" not in found[1]


def test_a_model_that_can_reason_is_asked_to() -> None:
    for think in (True, "high"):
        able = read_ollama_chat({"messages": [USER], "think": think}, can_think=True).request
        assert (able.thinking, able.ignored) == (True, ())
        unable = read_ollama_chat({"messages": [USER], "think": think}).request
        assert (unable.thinking, unable.ignored) == (False, ("think",))
    assert not read_ollama_chat({"messages": [USER], "think": False}, can_think=True).request.thinking


def test_reasoning_is_apart_from_the_answer() -> None:
    events = response_events()
    sent = [events.created(), *events.open(ReasoningItem("rs_1")), events.delta("Hm."), *events.close()]
    sent += [*events.open(MessageItem("msg_1")), events.delta("Yes.")]
    ending = flat(events.completed(Usage(5, 3, 2)))
    messages = [piece["message"] for piece in pieces([*sent, *ending], answer())]
    assert [message.get("thinking") for message in messages] == ["Hm.", None, None]
    assert [message["content"] for message in messages] == ["", "Yes.", ""]
    whole = answer(is_chat=False).whole(ending[-1].response)  # type: ignore[attr-defined]
    assert (whole["thinking"], whole["response"]) == ("Hm.", "Yes.")


def test_a_call_is_one_piece_with_its_arguments_as_an_object() -> None:
    events = response_events()
    called = [
        *events.open(CallItem("fc_1", "call_1", "f")),
        events.delta('{"a"'),
        events.delta(": 1}"),
        *events.close(),
    ]
    function = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
    ending = events.completed(Usage(5, 3, 2))
    call, last = pieces([events.created(), *called, *flat(ending)], answer())
    assert call["message"] == {"role": "assistant", "content": "", "tool_calls": [function]}
    assert (call["done"], last["done"], last["message"]["content"]) == (False, True, "")
    whole = answer().whole(flat(ending)[-1].response)  # type: ignore[attr-defined]
    assert whole["message"]["tool_calls"] == [function]


def test_a_call_that_the_limit_cut_off_is_left_out() -> None:
    events = response_events()
    called = [*events.open(CallItem("fc_1", "call_1", "f")), events.delta('{"a"')]
    ending = flat(events.incomplete(Usage(5, 3, 2), "max_output_tokens"))
    [last] = pieces([events.created(), *called, *ending], answer())
    assert (last["done_reason"], last["message"]) == ("length", {"role": "assistant", "content": ""})


def test_a_failure_is_a_piece_with_its_message() -> None:
    events = response_events()
    found = pieces([events.created(), *flat(events.failed(QueueTimeoutError("too late")))], answer())
    assert found == [{"error": "too late"}]


def test_a_model_that_is_only_loaded_has_an_answer_without_text() -> None:
    loaded = answer(is_chat=False).loaded()
    assert loaded == {
        "model": "m:latest", "created_at": CREATED, "response": "", "done": True, "done_reason": "load"
    }  # fmt: skip


def test_times_are_in_the_format_that_go_reads() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000000Z"
