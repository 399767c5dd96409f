"""Anthropic's Messages API without a network: accepted and rejected requests."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import (
    ApiError,
    InvalidRequestError,
)
from gateway.protocol.anthropic import MessagesRequest, read_messages
from gateway.protocol.reasoning import Reasoning, ReasoningText
from gateway.protocol.requests import FunctionCall, FunctionCallOutput, InputMessage
from gateway.protocol.tools import FunctionTool, JsonSchema, NamedFunction
from tests.support.anthropic_requests import SCHEMA, TOOL, USER, read

FORMAT: dict[str, Any] = {"type": "json_schema", "schema": SCHEMA}
SEARCH: dict[str, Any] = {"type": "web_search_20250305", "name": "web_search"}
IMAGE: dict[str, Any] = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def said(*content: Any, role: str = "user") -> MessagesRequest:
    """A request whose second message has the blocks `content`."""
    return read(messages=[USER, {"role": role, "content": list(content)}, USER])


def refused(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    return caught.value.code, caught.value.param


def test_texts_calls_and_results_become_items() -> None:
    request = read(
        system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "茶"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": None},
                    {"type": "redacted_thinking", "data": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "茶"}},
                    {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_2",
                        "is_error": True,
                        "content": [{"type": "text", "text": "gone"}],
                    },
                    {"type": "tool_result", "tool_use_id": "toolu_3"},
                    {"type": "text", "text": "So?"},
                ],
            },
            {"role": "system", "content": "Hurry."},
        ],
    )
    assert request.instructions == "Be brief.\n\nBe kind."
    assert request.items == [
        InputMessage("user", "a\n\n茶"),
        Reasoning([ReasoningText("Hm.")]),
        InputMessage("assistant", "I look."),
        FunctionCall(call_id="toolu_1", name="f", arguments='{"a":"茶"}'),
        FunctionCall(call_id="toolu_2", name="g", arguments="{}"),
        FunctionCallOutput(call_id="toolu_1", output="sunny"),
        FunctionCallOutput(call_id="toolu_2", output="Error: gone"),
        FunctionCallOutput(call_id="toolu_3", output=""),
        InputMessage("user", "So?"),
        InputMessage("system", "Hurry."),
    ]
    assert request.ignored == ("messages[].content[][redacted_thinking]",)
    assert (request.is_stored, request.is_ephemeral, request.route) == (False, False, "messages")


def test_messages_of_one_role_are_one_turn() -> None:
    request = read(messages=[USER, {"role": "user", "content": "y"}, {"role": "assistant", "content": "z"}, USER])
    assert request.items == [InputMessage("user", "x\n\ny"), InputMessage("assistant", "z"), InputMessage("user", "x")]


def test_fields_keep_their_meaning() -> None:
    request = read(
        model="m", system="Be brief.", temperature=0.5, top_p=0.5, top_k=3, seed=4, stop_sequences=["。", "END"],
        tools=[TOOL], truncation="auto", output_config={"format": FORMAT},
    )  # fmt: skip
    assert (request.model, request.instructions, request.max_output_tokens) == ("m", "Be brief.", 5)
    assert (request.temperature, request.top_p, request.top_k, request.seed) == (0.5, 0.5, 3, 4)
    assert request.stops == ("。", "END")
    assert request.functions == [FunctionTool(name="get_weather", description="Weather.", parameters=SCHEMA)]
    assert request.format == JsonSchema(name="answer", schema=SCHEMA)
    assert (request.truncation, request.encodes_only, request.ignored) == ("auto", False, ())
    assert read(output_format=FORMAT).format == request.format


def test_numbers_may_be_written_as_other_clients_do() -> None:
    request = read(max_tokens=5.0, top_k=-1, seed=(1 << 63) - 1, repetition_penalty=1.3)
    assert (request.max_output_tokens, request.top_k, request.seed) == (5, None, (1 << 63) - 1)
    assert (request.repeat_penalty, request.ignored) == (1.3, ())


def test_no_tokens_means_that_the_prompt_is_only_encoded() -> None:
    request = read(max_tokens=0)
    assert (request.encodes_only, request.max_output_tokens) == (True, None)


@pytest.mark.parametrize(
    ("choice", "meaning"),
    [
        (None, "auto"),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "get_weather"}, NamedFunction("get_weather")),
    ],
)
def test_each_tool_choice_has_its_counterpart(choice: Any, meaning: Any) -> None:
    request = read(tools=[TOOL], tool_choice=choice)
    assert (request.choice, request.ignored) == (meaning, ())


def test_a_tool_of_anthropics_server_is_dropped_unless_it_is_required() -> None:
    request = read(tools=[SEARCH, {**TOOL, "type": "custom"}], tool_choice={"type": "any"})
    assert [tool.name for tool in request.functions] == ["get_weather"]
    assert request.ignored == ("tools[web_search_20250305]",)
    assert read(tools=[SEARCH]).functions == []
    required = ("unsupported_parameter", "tools")
    assert refused(tools=[SEARCH], tool_choice={"type": "any"}) == required
    assert refused(tools=[SEARCH, TOOL], tool_choice={"type": "tool", "name": "web_search"}) == required


def test_hints_have_no_effect_and_are_listed() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    request = read(
        system=[{"type": "text", "text": "Be brief.", **cached}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "x", **cached}]}],
        tools=[{**TOOL, **cached, "strict": True}],
        thinking={"type": "enabled", "budget_tokens": 1024},
        metadata={"user_id": "ada"},
        service_tier="standard_only",
        context_management={"edits": []},
        output_config={"effort": "high"},
    )
    assert request.ignored == (
        "metadata", "context_management", "messages[].content[].cache_control", "system[].cache_control",
        "tools[].cache_control", "tools[].strict", "thinking.budget_tokens", "output_config.effort",
    )  # fmt: skip
    assert read(thinking={"type": "disabled"}, service_tier="auto").ignored == ()


@pytest.mark.parametrize(
    ("fields", "asked", "shown"),
    [
        ({}, False, False),
        ({"type": "disabled"}, False, False),
        ({"type": "adaptive"}, False, True),
        ({"type": "enabled", "budget_tokens": 1024}, True, True),
        ({"type": "enabled", "display": "omitted"}, True, False),
    ],
)
def test_reasoning_is_shown_to_those_who_ask_for_it(fields: dict[str, Any], asked: bool, shown: bool) -> None:
    request = read(thinking=fields) if fields else read()
    assert (request.thinking, request.shows_thinking) == (asked, shown)
    with pytest.raises(ApiError) as caught:
        read_messages({"messages": [USER], "metadata": {"user_id": "ada"}}, strict_fields=True)
    assert caught.value.param == "metadata"


def test_the_billing_block_of_claude_code_does_not_change_the_prompt() -> None:
    system = [{"type": "text", "text": f"x-anthropic-billing-header: cch={n};"} for n in range(2)]
    text = {"type": "text", "text": "Be brief."}
    assert [read(system=[block, text]).instructions for block in system] == ["Be brief."] * 2
    assert read(system=[system[0]]).instructions is None


@pytest.mark.parametrize("kind", ["image", "document", "search_result", "container_upload"])
def test_what_a_text_model_cannot_read_is_refused_by_name(kind: str) -> None:
    block = {**IMAGE, "type": kind}
    with pytest.raises(ApiError) as caught:
        said(block)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "messages[1].content[0]")
    assert f"`{kind}`" in caught.value.message
    with pytest.raises(ApiError) as caught:
        said({"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a"}, block]})
    assert caught.value.param == "messages[1].content[0].content[1]"


def test_records_of_anthropics_server_have_no_effect() -> None:
    request = said({"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}}, role="assistant")
    assert request.ignored == ("messages[].content[][server_tool_use]",)
    assert request.items == [InputMessage("user", "x\n\nx")]


def test_an_answer_continues_a_last_message_of_the_assistant() -> None:
    start: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": "The"}]}
    request = read(messages=[USER, start, {"role": "assistant", "content": " sun"}], tools=[TOOL])
    assert (request.items[-1], request.continues_text) == (InputMessage("assistant", "The sun"), True)
    assert not read().continues_text
    assert not read(messages=[USER, {"role": "assistant", "content": " "}]).continues_text
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    assert not read(messages=[USER, {"role": "assistant", "content": [call]}]).continues_text
    for fields in ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"output_format": FORMAT}):
        assert refused(messages=[USER, start], **fields) == ("invalid_request", "messages")


def test_an_empty_last_message_of_the_assistant_is_dropped() -> None:
    assert read(messages=[USER, {"role": "assistant", "content": " "}]).items == [InputMessage("user", "x")]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": None}, "invalid_request", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_request", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_request", "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": 1}]}]}, "invalid_request", "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_request", "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x"}] * 2000}, "invalid_request", "messages"),
        ({"max_tokens": -2}, "invalid_request", "max_tokens"),
        ({"stop_sequences": ["a", ""]}, "invalid_request", "stop_sequences"),
        ({"stop_sequences": ["a"] * 17}, "invalid_request", "stop_sequences"),
        ({"stop": "a"}, "unsupported_parameter", "stop"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"tools": [{"name": "a b"}]}, "invalid_request", "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "invalid_request", "tool_choice.name"),
        ({"tool_choice": {"type": "required"}}, "invalid_request", "tool_choice.type"),
        ({"tools": [{"name": "f", "input_schema": {"a": 1e400}}]}, "invalid_request", "tools[0].input_schema.a"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_rejected_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    assert refused(**fields) == (code, param)


def test_arguments_that_no_template_can_render_are_rejected_by_their_place() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(InvalidRequestError) as caught:
        said({"type": "tool_use", "id": "a", "name": "f", "input": deep}, role="assistant")
    assert (caught.value.param or "").startswith("messages[1].content[0].input.a")
