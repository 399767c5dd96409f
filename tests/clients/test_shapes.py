"""Request bodies in the form that programs send: Open WebUI, NextChat, LobeChat, Cherry Studio."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.clients.conftest import INSTALL_SECONDS
from tests.support.running import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS)]
MODEL = "smollm2-135m-instruct"
RUN_SECONDS = 400


def streamed(gateway: Gateway, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chunks of a streamed chat completion."""
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=RUN_SECONDS) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def text(chunks: list[dict[str, Any]]) -> str:
    """Return the text of a streamed answer."""
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def function(name: str, description: str, **properties: Any) -> dict[str, Any]:
    """Return the definition of a tool."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def open_webui_tools() -> list[dict[str, Any]]:
    """Return 36 tools of 7 000 tokens, in the form that Open WebUI derives from Python functions."""
    optional = {
        "anyOf": [{"type": "string"}, {"type": "null"}],
        "default": None,
        "description": "Limit the scope, or leave empty.",
    }
    explained = "Use this tool when the user refers to notes, chats, memories or knowledge by topic or time. "
    return [
        function(
            f"search_source_{number}",
            explained * 2,
            query={"type": "string", "description": "The words to look up in titles and in contents."},
            count={"type": "integer", "default": 5, "description": "Maximum number of results to return."},
            start_timestamp={"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            directory_id=optional,
        )
        for number in range(36)
    ]


def test_open_webuis_first_message_with_its_built_in_tools_is_answered(gateway: Gateway) -> None:
    chunks = streamed(
        gateway,
        {
            "stream": True,
            "model": MODEL,
            "messages": [{"role": "user", "content": "hello"}],
            "tools": open_webui_tools(),
            "stream_options": {"include_usage": True},
            "max_tokens": 8,
        },
    )
    assert 6500 < chunks[-1]["usage"]["prompt_tokens"] < 8192
    assert any(chunk["choices"] and chunk["choices"][0]["finish_reason"] for chunk in chunks)


def test_open_webuis_title_of_a_chat_is_generated(gateway: Gateway) -> None:
    body = {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": "### Task:\nGenerate a concise title.\n### Chat History:\nUSER: hello"}
        ],
        "stream": False,
        "max_completion_tokens": 16,
    }
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=RUN_SECONDS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_nextchats_messages_are_answered(gateway: Gateway) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Hello!"}]
    body = {
        "messages": messages,
        "stream": True,
        "model": MODEL,
        "temperature": 0.5,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "max_tokens": 8,
    }
    messages.append({"role": "assistant", "content": text(streamed(gateway, body))})
    messages.append({"role": "user", "content": "Again, please."})
    assert text(streamed(gateway, body))


def test_lobechats_messages_and_tools_are_answered(gateway: Gateway) -> None:
    search = function(
        "lobe-web-browsing____search____builtin", "Search the web.", query={"type": "string", "maxLength": 12}
    )
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look it up."}]},
    ]
    body = {
        "messages": messages,
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "user": "user_1",
        "max_tokens": 60,
        "tools": [search],
        "tool_choice": "required",
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed(gateway, body) if chunk["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    arguments = "".join(call["function"].get("arguments") or "" for call in calls)
    assert calls[0]["function"]["name"] == search["function"]["name"]
    assert set(json.loads(arguments)) == {"query"}
    call = {
        "id": calls[0]["id"],
        "type": "function",
        "function": {"name": search["function"]["name"], "arguments": arguments},
    }
    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    messages.append(
        {
            "role": "tool",
            "name": search["function"]["name"],
            "tool_call_id": calls[0]["id"],
            "content": "Nothing found.",
        }
    )
    assert text(streamed(gateway, {**body, "tool_choice": "none", "max_tokens": 8}))


def test_cherry_studios_messages_are_answered(gateway: Gateway) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hello!"}],
        "temperature": 0.7,
        "top_p": 1,
        "max_tokens": 8,
        "stream": True,
        "stream_options": {"include_usage": True},
        "keep_alive": -1,
        "enable_thinking": False,
        "reasoning_effort": "medium",
    }
    assert text(streamed(gateway, body))
