"""The Responses protocol without a socket: accepted and rejected messages, and the format of every event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from gateway.errors import ApiError, EngineUnavailableError, InvalidRequestError
from gateway.protocol.chat import read_chat
from gateway.protocol.detokenizer import overlap
from gateway.protocol.events import Event, Usage, refusal
from gateway.protocol.items import input_item, messages
from gateway.protocol.output_items import MessageItem
from gateway.protocol.received import receive
from gateway.protocol.requests import MAX_MESSAGE, InputMessage, ResponseCancel, ResponseCreate, parse, read_body
from gateway.protocol.response_events import ResponseEvents
from tests.support.events import check_types, flat, numbered, plain

OPEN_RESPONSES = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "user", "usage",
    "max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier",
    "prompt_cache_key",
}  # fmt: skip
"""Fields that the Open Responses specification requires in the response object (schema ResponseResource)."""
UNSUPPORTED = {
    "conversation", "image", "input_transformations", "moderation", "prompt", "prompt_cache_diagnostics",
    "prompt_cache_options", "tool_usage",
}  # fmt: skip
"""Optional fields of OpenAI's type, of features that Samovar does not have."""


def create(**fields: Any) -> ResponseCreate:
    message = parse(json.dumps({"type": "response.create", **fields}))
    assert isinstance(message, ResponseCreate)
    return message


def refused(data: str) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        parse(data)
    return caught.value.code, caught.value.param


def events(*, ignored: Sequence[str] = (), **fields: Any) -> ResponseEvents:
    return ResponseEvents(
        create(input="hi", metadata={"k": "v"}, **fields), response_id="resp_1", model="m", clock=lambda: 1.5,
        temperature=0.7, top_p=0.8, max_output_tokens=9, ignored=ignored,
    )  # fmt: skip


def test_a_string_is_a_users_message() -> None:
    assert create(input="你好").items == [InputMessage("user", "你好")]


def test_items_of_every_role_are_accepted() -> None:
    content = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    roles = ["user", "assistant", "system", "developer"]
    request = create(input=[{"role": role, "content": content} for role in roles])
    said = [m for m in request.items if isinstance(m, InputMessage)]
    assert [(m.role, m.text) for m in said] == [(role, "ab") for role in roles]


def test_unsupported_fields_with_neutral_values_are_accepted() -> None:
    create(input="x", stream=True, tools=[], tool_choice="auto", user=None, background=False)


def test_a_response_in_the_background_is_queued_first_and_says_so() -> None:
    for background, status in ((True, "queued"), (False, "in_progress")):
        [created] = numbered([events(background=background).created()])
        assert (created["response"]["status"], created["response"]["background"]) == (status, background)
        check_types(created)


def test_a_cancel_names_its_response() -> None:
    assert parse('{"type":"response.cancel","response_id":"resp_1"}') == ResponseCancel("resp_1")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": 5}, "invalid_request", "input"),
        ({"temperature": "hot"}, "invalid_request", "temperature"),
        ({"temperature": 3}, "invalid_request", "temperature"),
        ({"repeat_penalty": 5e-324}, "invalid_request", "repeat_penalty"),
        ({"max_output_tokens": 1 << 80}, "invalid_request", "max_output_tokens"),
        ({"top_k": 1 << 31}, "invalid_request", "top_k"),
        ({"top_p": -0.1}, "invalid_request", "top_p"),
        ({"max_output_tokens": 0}, "invalid_request", "max_output_tokens"),
        ({"input": [{"role": "robot", "content": "x"}]}, "invalid_request", "input[0].role"),
        ({"input": [{"role": "user"}]}, "invalid_request", "input[0]"),
        ({"stop": ["a", ""]}, "invalid_request", "stop"),
        ({"metadata": {"k": 1}}, "invalid_request", "metadata[...]"),
        ({"truncation": "some"}, "invalid_request", "truncation"),
        ({"conversation": "c"}, "unsupported_parameter", "conversation"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "unsupported_parameter", "tools"),
        ({"background": True, "store": False}, "invalid_request", "store"),
        ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
    ],
)
def test_an_invalid_field_is_rejected_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    assert refused(json.dumps({"type": "response.create", "input": "x", **fields})) == (code, param)


@pytest.mark.parametrize("data", ["", "{", "[1,", "nul", "[" * 100_000])
def test_invalid_json_is_rejected_as_invalid_json(data: str) -> None:
    assert refused(data)[0] == "invalid_json"


@pytest.mark.parametrize("data", ["[]", "null", "5", "{}", '{"type":5}', '{"type":"response.dance"}'])
def test_json_that_is_not_a_message_is_rejected_as_an_invalid_request(data: str) -> None:
    assert refused(data)[0] == "invalid_request"


def test_a_message_may_be_one_mebibyte_and_not_more() -> None:
    frame = '{"type":"response.create","input":"%s"}'
    room = MAX_MESSAGE - len(frame % "")
    parse(frame % ("x" * room))
    assert refused(frame % ("x" * (room + 1)))[0] == "message_too_large"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_no_json_breaks_the_parser(value: Any) -> None:
    for data in (json.dumps(value), json.dumps({"type": "response.create", "input": value})):
        try:
            parse(data)
        except ApiError as error:
            assert error.message


def valid(sent: list[Event]) -> list[str]:
    """Validate each event strictly with OpenAI's own types, numbered as in the log; return their types."""
    for event in numbered(sent):
        check_types(event)
        if "response" in event:
            assert event["response"].keys() >= OPEN_RESPONSES
            assert event["response"].keys() >= {name for name in Response.model_fields if name not in UNSUPPORTED}
    return [event.type for event in sent]


ECHOED: dict[str, Any] = {
    "user": "ada", "prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "s",
    "max_tool_calls": 3, "reasoning": {"effort": "high", "summary": "auto"}, "metadata": {"a": "b"},
    "instructions": "Be brief.", "truncation": "auto", "store": False, "temperature": 0.7,
    "text": {"format": {"type": "text"}, "verbosity": "low"}, "presence_penalty": 1.0, "frequency_penalty": -1.0,
    "top_logprobs": 2, "previous_response_id": "resp_0",
}  # fmt: skip
"""Fields of a request that the response object repeats."""


def test_every_event_with_the_response_repeats_what_the_request_said() -> None:
    fields = {**ECHOED, "include": ["message.output_text.logprobs"]}
    e = ResponseEvents(
        create(input="hi", **fields), response_id="resp_1", model="m", clock=lambda: 1.5,
        temperature=0.7, top_p=0.8, max_output_tokens=9,
    )  # fmt: skip
    sent = [e.created(), e.queued(1, 1.0), e.in_progress(), *flat(e.completed(Usage(3, 1, 2)))]
    assert len(sent) == 4
    for event in numbered(sent):
        check_types(event)
        assert {name: event["response"][name] for name in ECHOED} == ECHOED


@pytest.mark.parametrize(
    ("fields", "name", "shown"),
    [
        ({}, "reasoning", None),
        ({}, "user", None),
        ({}, "text", {"format": {"type": "text"}, "verbosity": "medium"}),
        ({"reasoning": {}}, "reasoning", {"effort": None, "summary": None}),
        ({"reasoning": {"effort": "extreme", "summary": 1}}, "reasoning", {"effort": None, "summary": None}),
        ({"reasoning": "high"}, "reasoning", None),
        ({"reasoning": {"generate_summary": "concise"}}, "reasoning", {"effort": None, "summary": "concise"}),
        ({"user": 7, "safety_identifier": None}, "user", None),
        ({"user": "x" * 513}, "user", None),
        ({"max_tool_calls": True}, "max_tool_calls", None),
        ({"max_tool_calls": -1}, "max_tool_calls", None),
        ({"service_tier": "flex"}, "service_tier", "default"),
        ({"prompt_cache_retention": "forever"}, "prompt_cache_retention", None),
        ({"text": {"verbosity": "odd"}}, "text", {"format": {"type": "text"}, "verbosity": "medium"}),
        ({"repeated": {"id": "resp_2"}}, "id", "resp_1"),
    ],
)
def test_a_value_that_typed_clients_could_not_read_is_not_repeated(
    fields: dict[str, Any], name: str, shown: object
) -> None:
    [created] = numbered([events(**fields).created()])
    check_types(created)
    assert created["response"][name] == shown


def test_the_events_of_an_answer_come_in_the_documented_order() -> None:
    e = events()
    sent = [
        e.created(),
        e.queued(2, 1.25),
        e.in_progress(),
        *e.open(MessageItem("msg_1")),
        e.delta("He"),
        e.delta("llo"),
        *flat(e.completed(Usage(3, 1, 2))),
    ]
    assert valid(sent) == [
        "response.created", "response.queued", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.output_text.delta", "response.output_text.delta",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    final = plain(sent[-1])["response"]
    assert final["output"][0]["content"][0]["text"] == "Hello"
    assert final["usage"]["input_tokens_details"]["cached_tokens"] == 1
    assert (final["status"], final["created_at"], final["completed_at"]) == ("completed", 1, 1)
    assert plain(sent[0])["response"]["output"] == []


def test_a_cancelled_answer_contains_the_text_so_far() -> None:
    e = events()
    sent = [
        e.created(),
        e.in_progress(),
        *e.open(MessageItem("msg_1")),
        e.delta("He"),
        *flat(e.incomplete(Usage(3, 0, 1), "cancelled")),
    ]
    assert valid(sent[:-1])
    last = plain(sent[-1])
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "cancelled"
    assert last["response"]["output"][0]["content"][0]["text"] == "He"


def test_the_response_object_carries_the_parameters_of_the_request() -> None:
    response = plain(
        events(
            presence_penalty=0.5, frequency_penalty=-1, top_logprobs=3, include=["message.output_text.logprobs"]
        ).created()
    )["response"]
    assert (response["presence_penalty"], response["frequency_penalty"], response["top_logprobs"]) == (0.5, -1, 3)


def test_ignored_fields_are_listed_when_the_response_is_created_and_only_if_there_are_any() -> None:
    created = plain(events(ignored=["user", "reasoning.effort"]).created())
    assert created["ignored"] == ["user", "reasoning.effort"]
    assert "ignored" not in plain(events().created())


def test_a_failure_carries_its_code() -> None:
    e = events()
    sent = [e.created(), *flat(e.failed(EngineUnavailableError("the engine died")))]
    assert [event.type for event in sent] == ["response.created", "response.failed"]
    assert plain(sent[-1])["response"]["error"]["code"] == "engine_unavailable"


def test_an_error_names_the_response_of_its_message() -> None:
    event = plain(refusal(EngineUnavailableError("x"), response_id="resp_1"))
    assert (event["type"], event["status"], event["response_id"]) == ("error", 503, "resp_1")
    assert event.keys() == {"type", "status", "error", "response_id"}


@pytest.mark.parametrize(
    ("data", "kind", "address", "has_lane"),
    [
        (b'{"type":"response.create","stream_id":"a","input":[{}]}', "response.create", {"stream_id": "a"}, True),
        (b'{"stream_id":null,"response_id":"r"}', None, {"response_id": "r"}, True),
        (b"{}", None, {}, True),
        (b'{"type":7,"stream_id":{"a":1},"response_id":[]}', None, {}, False),
        (b'{"stream_id":"\\u0061 b"}', None, {"stream_id": "a b"}, False),
        (b'{"stream_id":"%s"}' % (b"a" * 257), None, {}, False),
        (b'{"stream_id":"%s"}' % (b"\\u0061" * 256), None, {"stream_id": "a" * 256}, True),
    ],
)
def test_the_address_of_a_message_is_read_before_it_is_decoded(
    data: bytes, kind: str | None, address: dict[str, str], has_lane: bool
) -> None:
    assert receive(data) == (data, kind, address, has_lane)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b'{"a":"', b"{}{}", b'{"a":01}'])
def test_invalid_json_is_detected_before_decoding(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        receive(data)
    assert caught.value.code == "invalid_json"


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: json.dumps({text: text}).encode()))
def test_no_frame_breaks_the_address_reader(data: bytes) -> None:
    try:
        receive(data)
    except ApiError as error:
        assert error.code in ("invalid_json", "invalid_request")


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "name": "f", "parameters": {"x": [{}] * 20_000}}]}, "tools[0].parameters"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"a": 1 << 64}}]}, "tools[0].parameters.a"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"enum": [1 << 64]}}}},
            "text.format.schema.enum[0]",
        ),
        ({"input": [{}] * 1025}, "input"),
        ({"stop": "x" * 1025}, "stop"),
    ],
)
def test_too_large_schemas_lists_and_numbers_are_rejected_by_name(fields: Any, param: str) -> None:
    assert refused(json.dumps({"type": "response.create", "input": "x", **fields})) == ("invalid_request", param)


def test_a_too_deep_schema_is_rejected_with_the_path_of_the_first_level_beyond() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"a": nested(64)}}
    code, param = refused(json.dumps({"type": "response.create", "input": "x", "tools": [tool]}))
    assert (code, param) == ("invalid_request", "tools[0].parameters.a" + "[0]" * 63)


@pytest.mark.parametrize("arguments", [json.dumps(nested(65)), "[" + "1," * 20_000 + "1]", "[" * 2000, f"{1 << 64}"])
def test_arguments_too_large_for_a_template_remain_text(arguments: str) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    [message] = messages([input_item(item, lambda prefix: f"{prefix}_1") for item in create(input=[call]).items])
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


def test_a_chat_may_have_as_many_calls_as_a_response_has_items() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    read_chat({"messages": [{"role": "assistant", "tool_calls": [call] * 1024}]})
    with pytest.raises(ApiError) as caught:
        read_chat({"messages": [{"role": "assistant", "tool_calls": [call] * 1025}]})
    assert caught.value.param == "messages"


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=8))
def test_text_that_may_start_a_stop_string_is_held_back(text: str, stop: str) -> None:
    fitting = [n for n in range(len(stop)) if n <= len(text) and text.endswith(stop[:n])]
    assert overlap(text, stop) == max(fitting)


@pytest.mark.parametrize("junk", ["[" + "{}," * 60_000 + "1]", "[" + ("[" * 500 + "]" * 500 + ",") * 120 + "1]"])
def test_a_message_of_too_many_arrays_and_objects_is_refused_before_it_is_decoded(junk: str) -> None:
    for field in ("input", "tools", "metadata", "unknown"):
        with pytest.raises(InvalidRequestError, match="arrays and objects"):
            parse(f'{{"type": "response.create", "{field}": {junk}}}')


@pytest.mark.parametrize("text", ["[{" * 60_000, '"[' * 60_000, "\\[" * 60_000, '\\"[{' * 60_000])
def test_brackets_within_strings_are_no_arrays_or_objects(text: str) -> None:
    message = parse(json.dumps({"type": "response.create", "input": text}))
    assert isinstance(message, ResponseCreate)
    assert message.input == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 5}, "temperature: must be at most 2"),
        ({"temperature": "hot"}, "temperature: must be a number, not a string"),
        ({"input": 5}, "input: must be a string or a list, not an integer"),
        ({"metadata": 5}, "metadata: must be an object, not an integer"),
        ({"truncation": "half"}, "truncation: `half` is not one of the supported values"),
        ({"stop": ["a"] * 5}, "stop: must have at most 4 elements"),
        ({"stop": "x" * 9999}, "stop: must have at most 1024 characters"),
        ({"logit_bias": {"a": 5}}, "logit_bias: each key must be an integer, not a string"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format: the field `name` is missing"),
        (
            {"tools": [{"type": "function", "name": "a b"}]},
            "tools[0].name: must match the pattern [A-Za-z0-9_.-]{1,128}",
        ),
    ],
)
def test_a_wrong_value_is_explained_in_plain_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_body({"input": "x", **fields})
    assert caught.value.message == message
