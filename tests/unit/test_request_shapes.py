"""The shapes of requests that clients send: which fields have an effect, which are ignored, and which are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import ApiError
from gateway.prompts.constraints import form
from gateway.protocol.chat import Stateless, read_chat
from gateway.protocol.received import receive
from gateway.protocol.requests import (
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    ItemReference,
    ResponseCreate,
    decode,
    parse,
    read_body,
)
from gateway.protocol.tools import AllowedTools, JsonSchema, NamedFunction

USER: dict[str, Any] = {"role": "user", "content": "x"}
FUNCTION: dict[str, Any] = {"name": "f", "parameters": {"type": "object"}}
TOOL = {"type": "function", **FUNCTION}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def respond(*, strict: bool = False, **fields: Any) -> ResponseCreate:
    request, _ = read_body(decode(json.dumps({"input": "x", **fields})), strict_fields=strict)
    return request


def chat(*, strict: bool = False, **fields: Any) -> Stateless:
    request, _ = read_chat(decode(json.dumps({"messages": [USER], **fields})), strict_fields=strict)
    return request


READERS = pytest.mark.parametrize("read", [respond, chat], ids=["responses", "chat"])


def refusal(read: Any, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    return caught.value.code, caught.value.param


def texts(items: list[InputItem]) -> list[str]:
    """The texts of all messages."""
    return [item.text for item in items if isinstance(item, InputMessage)]


@READERS
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"echo": True}, "echo"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
def test_a_demand_is_refused_by_name(read: Any, fields: dict[str, Any], param: str) -> None:
    assert refusal(read, **fields) == ("unsupported_parameter", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "c"}, "conversation"),
        ({"messages": [USER]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [USER, {"type": "computer_call"}]}, "input[1]"),
    ],
)
def test_a_demand_of_the_responses_api_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(respond, **fields) == ("unsupported_parameter", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x"}, "input"),
        ({"functions": [FUNCTION]}, "functions"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]}, "messages[0].content[1]"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
    ],
)
def test_a_demand_of_chat_completions_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(chat, **fields) == ("unsupported_parameter", param)


@READERS
def test_minus_one_means_unset_and_integral_floats_are_integers(read: Any) -> None:
    limit = "max_output_tokens" if read is respond else "max_tokens"
    unset = read(**{limit: -1, "seed": -1, "top_k": -1})
    assert (unset.max_output_tokens, unset.seed, unset.top_k) == (None, None, None)
    whole = read(**{limit: 5.0, "seed": 7.0, "top_k": 3.0, "top_p": 1, "temperature": 1})
    assert (whole.max_output_tokens, whole.seed, whole.top_k) == (5, 7, 3)
    assert read(seed=(1 << 63) - 1).seed == (1 << 63) - 1
    assert refusal(read, seed=1 << 63) == ("invalid_request", "seed")
    assert refusal(read, seed=-2) == ("invalid_request", "seed")
    assert refusal(read, **{limit: 5.5}) == ("invalid_request", limit)


@READERS
def test_the_repetition_penalty_of_other_servers_is_the_repeat_penalty(read: Any) -> None:
    assert read(repetition_penalty=1.3).repeat_penalty == 1.3
    assert read(repetition_penalty=1.3, repeat_penalty=1.1).repeat_penalty == 1.1
    assert read(repetition_penalty=1.3).ignored == ()


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_beside_the_type_of_a_format_is_enforced(kind: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for request in (
        chat(response_format={"type": kind, "schema": schema}),
        respond(text={"format": {"type": kind, "schema": schema}}),
    ):
        assert isinstance(request.format, JsonSchema)
        assert (request.format.schema, request.ignored) == (schema, ())


@READERS
def test_thinking_is_an_option_of_the_template(read: Any) -> None:
    assert read(chat_template_kwargs={"enable_thinking": True}).thinking
    assert not read(chat_template_kwargs={}).thinking
    assert not read().thinking


PARTS = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, {"type": "refusal", "refusal": "c"}, "d"]


@READERS
@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ("茶", "茶"), (PARTS, "abcd"), ([], ""), ([{"type": "thinking", "thinking": "t"}, "a"], "a")],
)
@pytest.mark.parametrize("role", ["user", "system", "assistant", "developer"])
def test_content_is_accepted_in_every_form(read: Any, role: str, content: Any, text: str) -> None:
    said = [USER, {"role": role, "content": content}, USER]
    request = read(input=said) if read is respond else read(messages=said)
    assert texts(request.items) == ["x", text, "x"]


@pytest.mark.parametrize(("content", "text"), [(None, ""), (PARTS, "abcd")])
def test_the_output_of_a_function_is_accepted_in_every_form(content: Any, text: str) -> None:
    output = {"type": "function_call_output", "call_id": "c", "output": content}
    for item in (
        respond(input=[output]).items[0],
        respond(input=[{**output, "type": "custom_tool_call_output"}]).items[0],
        chat(messages=[{"role": "tool", "content": content, "tool_call_id": "c"}]).items[0],
        chat(messages=[{"role": "function", "content": content, "name": "c"}]).items[0],
    ):
        assert isinstance(item, FunctionCallOutput)
        assert (item.text, item.call_id) == (text, "c")


@pytest.mark.parametrize("arguments", [{"a": "茶", "b": [1]}, '{"a": "茶", "b": [1]}'])
def test_the_arguments_of_a_call_may_be_decoded(arguments: Any) -> None:
    function = {"name": "f", "arguments": arguments}
    expected = FunctionCall(call_id="", name="f", arguments='{"a": "茶", "b": [1]}')
    for call in ({"function": function}, {"type": "function", "id": "", "function": function}):
        assert chat(messages=[{"role": "assistant", "tool_calls": [call]}]).items == [expected]
    assert respond(input=[{"type": "function_call", "call_id": "", **function}]).items == [expected]


def test_calls_of_other_servers_become_function_calls() -> None:
    legacy = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    assert chat(messages=[legacy, USER]).items[0] == FunctionCall(call_id="f", name="f", arguments="{}")
    expected = FunctionCall(call_id="c", name="p", arguments='{"input": "*** Begin"}')
    custom = {"type": "custom", "id": "c", "custom": {"name": "p", "input": "*** Begin"}}
    assert chat(messages=[{"role": "assistant", "tool_calls": [custom]}]).items == [expected]
    item = {"type": "custom_tool_call", "call_id": "c", "name": "p", "input": "*** Begin"}
    assert respond(input=[item]).items == [expected]


def test_an_output_of_the_client_itself_is_read_as_a_message_of_the_user() -> None:
    output = {"type": "function_call_output", "id": "fco_1", "name": "goal", "namespace": "agent", "output": "tea"}
    assert respond(input=[USER, output]).items[1] == InputMessage(role="user", content="tea")
    without_name = {name: value for name, value in output.items() if name != "name"}
    assert refusal(respond, input=[USER, without_name]) == ("invalid_request", "input[1]")


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


def test_arguments_that_are_nested_too_deeply_are_refused_by_name() -> None:
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": nested(90)}
    assert refusal(respond, input=[item]) == ("invalid_request", "input[0].arguments")


@pytest.mark.parametrize("name", ["github.issues.create", "a" * 128, "x-_.1"])
def test_the_name_of_a_function_may_have_dots_and_128_characters(name: str) -> None:
    for request in (
        respond(tools=[{**TOOL, "name": name}], tool_choice={"type": "function", "name": name}),
        chat(
            tools=[{"type": "function", "function": {"name": name}}],
            tool_choice={"type": "function", "function": {"name": name}},
        ),
    ):
        assert request.functions[0].name == name
        assert request.choice == NamedFunction(name)
    assert refusal(respond, tools=[{**TOOL, "name": name + "a" * 129}]) == ("invalid_request", "tools[0].name")


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_in_the_grammar(mode: str) -> None:
    others = [{**TOOL, "name": "g"}, TOOL]
    flat = respond(tools=others, tool_choice={"type": "allowed_tools", "mode": mode, "tools": [TOOL]})
    chosen = {"mode": mode, "tools": [{"type": "function", "function": {"name": "f"}}]}
    tools = [{"type": "function", "function": {"name": name}} for name in "gf"]
    nested_ = chat(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": chosen})
    for request in (flat, nested_):
        assert isinstance(request.choice, AllowedTools)
        constraint = form(request.functions, request.choice, request.format, request.error_paths)
        assert constraint.grammar is not None
        assert '\\\\\\"f\\\\\\"' in constraint.grammar
        assert '\\\\\\"g\\\\\\"' not in constraint.grammar
        assert constraint.whole == (mode != "auto")


def test_hosted_tools_among_the_allowed_ones_are_dropped() -> None:
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}
    assert respond(tools=[TOOL], tool_choice=allowed).choice == "none"
    some = respond(tools=[TOOL], tool_choice={**allowed, "tools": [{"type": "web_search"}, TOOL]})
    assert some.choice == AllowedTools("auto", [NamedFunction("f")])
    assert some.ignored[0] == "tool_choice.tools[web_search]"
    required = {"tools": [TOOL], "tool_choice": {**allowed, "mode": "required"}}
    assert refusal(respond, **required) == ("unsupported_parameter", "tool_choice")


class Uncompared(dict[str, Any]):
    """A tool that must not be compared with other tools."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("thousands of tools take minutes to compare with each other")

    __hash__ = None


def test_hosted_tools_among_the_allowed_ones_are_found_without_comparing_all_tools() -> None:
    tools = [Uncompared(type="function", name="f"), Uncompared(type="web_search")]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": tools}
    request, _ = read_body({"input": "x", "tools": [TOOL], "tool_choice": choice})
    assert request.choice == AllowedTools("auto", [NamedFunction("f")])
    assert request.ignored == ("tool_choice.tools[web_search]",)


def test_an_error_about_a_key_names_the_field() -> None:
    with pytest.raises(ApiError) as refused:
        respond(logit_bias={"the": 1})
    assert refused.value.param == "logit_bias"


@pytest.mark.parametrize("item", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}])
def test_an_item_reference_is_read_with_and_without_its_type(item: dict[str, Any]) -> None:
    assert respond(input=[item]).items == [ItemReference("msg_1")]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("\\ud83d", "\ufffd"),
        ("a\\udE00b", "a\ufffdb"),
        ("\\ud83d\\ude00", "😀"),
        ("\\ud83d\\ud83d\\ude00", "\ufffd😀"),
        ("\\\\ud83d", "\\ud83d"),
        ("\\\\\\ud83d", "\\\ufffd"),
        ("\\ud83d\\\\", "\ufffd\\"),
        ("\ud83d", "\ufffd"),
        ("퟿茶", "퟿茶"),
    ],
)
def test_half_a_character_is_replaced(text: str, read: str) -> None:
    data = f'\ufeff{{"type":"response.create","input":"{text}"}}'.encode("utf-8", "surrogatepass")
    message = parse(data)
    assert isinstance(message, ResponseCreate)
    assert message.input == read
    received = receive(data)
    assert received.kind == "response.create"
    assert parse(received.data) == message


def test_a_trailing_answer_is_continued_unless_the_client_says_otherwise() -> None:
    said = [USER, {"role": "assistant", "content": "Tea is"}]
    assert chat(messages=said).continues_text
    assert chat(messages=said, continue_final_message=True, add_generation_prompt=False).ignored == ()
    for fields in (
        {"add_generation_prompt": True},
        {"continue_final_message": False},
        {"response_format": {"type": "json_object"}},
        {"tools": [CHAT_TOOL], "tool_choice": "required"},
    ):
        assert not chat(messages=said, **fields).continues_text
    assert not chat(messages=[*said, USER]).continues_text
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert not chat(messages=[USER, {"role": "assistant", "content": "a", "tool_calls": [call]}]).continues_text
    assert not respond(input=said).continues_text
    wrong = {"continue_final_message": True, "response_format": {"type": "json_object"}}
    assert refusal(chat, messages=said, **wrong) == ("invalid_request", "continue_final_message")


@pytest.mark.parametrize("content", ["", None, "  "])
def test_an_empty_trailing_answer_is_left_out(content: str | None) -> None:
    request = chat(messages=[USER, {"role": "assistant", "content": content}])
    assert request.items == chat().items
    assert not request.continues_text


def test_chat_completions_take_truncation() -> None:
    assert chat(truncation="auto").truncation == "auto"
    assert refusal(chat, truncation="some") == ("invalid_request", "truncation")
