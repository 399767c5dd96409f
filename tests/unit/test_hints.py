"""Fields that are accepted without an effect: they are listed in the response, or refused with `strict_fields`."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.protocol.hints import MAX_LISTED
from tests.unit.test_request_shapes import (
    CHAT_TOOL,
    READERS,
    TOOL,
    USER,
    chat,
    refusal,
    respond,
)

HINTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"prompt_cache_key": "k"}, ("prompt_cache_key",)),
    ({"prompt_cache_retention": "24h"}, ("prompt_cache_retention",)),
    ({"client_metadata": {"turn_id": "t"}}, ("client_metadata",)),
    ({"user": "ada"}, ("user",)),
    ({"safety_identifier": "a"}, ("safety_identifier",)),
    ({"service_tier": "flex"}, ("service_tier",)),
    ({"cache_control": {"type": "ephemeral"}}, ("cache_control",)),
    ({"timings_per_token": True, "samplers": ["top_k"]}, ("timings_per_token", "samplers")),
    ({"ignore_eos": True, "cache_prompt": True}, ("ignore_eos", "cache_prompt")),
    ({"colour": "red", "trace": {"id": 1}, "nothing": None}, ("colour", "trace")),
    ({"chat_template_kwargs": {"enable_thinking": True, "a": 1}}, ("chat_template_kwargs.a",)),
    ({"stream_options": {"continuous_usage_stats": True}, "stream": True}, ("stream_options",)),
    ({"ignored": ["x"]}, ("ignored",)),
]
"""Fields of both APIs, and what is listed as ignored."""


@READERS
@pytest.mark.parametrize(("fields", "ignored"), HINTS, ids=lambda value: next(iter(value)))
def test_a_hint_is_accepted_and_listed(read: Any, fields: dict[str, Any], ignored: tuple[str, ...]) -> None:
    listed = read(**fields).ignored
    if "stream_options" in fields and read is chat:
        assert listed == ("stream_options.continuous_usage_stats",)
    else:
        assert listed == ignored


@READERS
@pytest.mark.parametrize("fields", [fields for fields, _ in HINTS], ids=lambda value: next(iter(value)))
def test_strict_fields_refuse_a_hint_by_name(read: Any, fields: dict[str, Any]) -> None:
    code, param = refusal(read, strict=True, **fields)
    assert code == "unsupported_parameter"
    assert param
    assert param.split(".")[0] in fields


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"reasoning": {"effort": "high", "summary": "auto"}}, ("reasoning",)),
        ({"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]},
         ("include[reasoning.encrypted_content]",)),
        ({"text": {"verbosity": "low", "format": {"type": "text"}}}, ("text.verbosity",)),
        ({"max_tool_calls": 3}, ("max_tool_calls",)),
        ({"tools": [{"type": "web_search"}, TOOL, {"type": "custom", "name": "c"}], "tool_choice": "auto"},
         ("tools[web_search]", "tools[custom]")),
        ({"tools": [{"type": "namespace", "name": "n", "tools": []}]}, ("tools[namespace]",)),
        ({"tools": [{**TOOL, "defer_loading": True, "cache_control": {}}]},
         ("tools[].defer_loading", "tools[].cache_control")),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}, USER]}, ("input[reasoning]",)),
        ({"input": [{**USER, "content": [{"type": "input_text", "text": "x", "cache_control": {}}]}]},
         ("input[].content[].cache_control",)),
        ({"input": [{"type": "message", **USER, "id": "msg_1", "status": "completed"}]}, ()),
        ({"reasoning": {}, "background": False, "n": 1, "parallel_tool_calls": True, "service_tier": "auto"}, ()),
    ],
)  # fmt: skip
def test_a_hint_of_the_responses_api_is_accepted_and_listed(fields: Any, ignored: tuple[str, ...]) -> None:
    assert respond(**fields).ignored == ignored


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"reasoning_effort": "high", "verbosity": "low"}, ("reasoning_effort", "verbosity")),
        ({"store": True}, ("store",)),
        ({"stream_options": {"include_usage": True}}, ("stream_options",)),
        ({"stream_options": {"include_obfuscation": True}, "stream": True}, ("stream_options.include_obfuscation",)),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}, CHAT_TOOL]}, ("tools[custom]",)),
        ({"messages": [{**USER, "cache_control": {}}] * 40}, ("messages[].cache_control",)),
        ({"messages": [USER, {"role": "assistant", "content": "a", "reasoning_content": "r"}, USER]}, ()),
        ({"messages": [USER, {"role": "assistant", "content": "a", "reasoning_details": []}, USER]},
         ("messages[].reasoning_details",)),
        ({"messages": [{**USER, "name": "ada"}], "logprobs": False, "top_logprobs": 0, "functions": []}, ()),
        ({"add_generation_prompt": False, "continue_final_message": True},
         ("continue_final_message",)),
    ],
)  # fmt: skip
def test_a_hint_of_chat_completions_is_accepted_and_listed(fields: Any, ignored: tuple[str, ...]) -> None:
    assert chat(**fields).ignored == ignored


@READERS
def test_the_list_of_ignored_fields_is_short_ascii_text_whatever_a_client_sends(read: Any) -> None:
    ignored = read(**{f"é\n,{i}" + "x" * 5000: 1 for i in range(100)}).ignored
    assert len(ignored) == MAX_LISTED + 1
    assert ignored[-1] == "..."
    assert ignored[0] == "???0" + "x" * 60
    assert read(**{"": 1}).ignored == ("?",)
