"""Requests in the form that programs send: Open WebUI, NextChat, LobeChat, Cherry Studio.

The forms follow the programs' sources: Open WebUI 0.12.4, NextChat of July 2026, LobeChat's `openaiCompatibleFactory`,
and for Cherry Studio a recorded request and the Vercel AI SDK, which it uses. The tests add only what `BRIEFLY` and
`CALLED` hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx
import pytest

from tests.clients.conftest import INSTALL_SECONDS
from tests.support.miniature import HELLO
from tests.support.running import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS)]
MODEL: Final = "smollm2-135m-instruct"
RUN_SECONDS: Final = 60
BRIEFLY: Final = {"max_tokens": 8}
"""Bounds the time of a test; the programs send no limit by default."""
CALLED: Final = {"max_tokens": 60, "tool_choice": "required"}
"""Makes the small model call a tool; the programs leave the choice to the model."""

Body = dict[str, Any]
Messages = list[dict[str, Any]]


@contextmanager
def streaming(gateway: Gateway, path: str, body: Body, headers: dict[str, str]) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the parsed events of a stream as they arrive."""
    headers = {"authorization": "Bearer none", **headers}
    with httpx.stream("POST", gateway.url + path, json=body, headers=headers, timeout=RUN_SECONDS) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
        yield (json.loads(line) for line in lines if line != "[DONE]")


def streamed(gateway: Gateway, body: Body, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the chunks of a streamed chat completion."""
    with streaming(gateway, "/v1/chat/completions", body, headers or {}) as chunks:
        return list(chunks)


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the deltas of a streamed answer."""
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def text(chunks: list[dict[str, Any]]) -> str:
    """Return the text of a streamed answer."""
    return "".join(delta.get("content") or "" for delta in deltas(chunks))


def call(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the tool call of a streamed answer, joined as NextChat does: a piece without an id continues the last."""
    pieces = [piece for delta in deltas(chunks) for piece in delta.get("tool_calls") or ()]
    first, *others = pieces
    arguments = first["function"]["arguments"] + "".join(piece["function"]["arguments"] for piece in others)
    assert not any("id" in piece for piece in others)
    return {
        "id": first["id"],
        "type": first["type"],
        "function": {"name": first["function"]["name"], "arguments": arguments},
    }


def completed(gateway: Gateway, body: Body) -> dict[str, Any]:
    """Return a chat completion that is not streamed."""
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=RUN_SECONDS)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def function(name: str, description: str, **properties: Any) -> dict[str, Any]:
    """Return the definition of a tool that requires its first parameter."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def test_the_list_of_models_has_what_these_programs_read(gateway: Gateway) -> None:
    answer = gateway.get("/v1/models", authorization="Bearer none").json()
    assert answer["object"] == "list"
    [model] = answer["data"]
    assert (model["id"], model["object"]) == (MODEL, "model")
    assert isinstance(model["created"], int)  # LobeChat formats it as a date


# Open WebUI


def test_open_webuis_hello_with_its_36_built_in_tools_is_answered(gateway: Gateway) -> None:
    """An administrator's first message has these tools if memories are enabled."""
    explained = "Use this tool when the user refers to notes, chats, memories or knowledge by topic or time. "
    parameters = {
        "query": {"description": "The words to look up in titles and in contents.", "type": "string"},
        "count": {"default": 5, "description": "Maximum number of results to return.", "type": "integer"},
        "start_timestamp": {"description": "Only results after this time, in Unix seconds.", "type": "integer"},
        "names": {"description": "Names to limit the search to.", "items": {"type": "string"}, "type": "array"},
    }
    tools = [function(f"search_source_{number}", explained * 2, **parameters) for number in range(36)]
    messages: Messages = [{"role": "user", "content": "hello"}]
    body = {"stream": True, "model": MODEL, "messages": messages, "tools": tools}
    chunks = streamed(gateway, {**body, "stream_options": {"include_usage": True}})
    assert text(chunks) == HELLO
    assert 6500 < chunks[-1]["usage"]["prompt_tokens"] < 8192  # the program's tools have about 7 000

    called = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "search_source_7", "arguments": '{"query": "x"}'},
    }
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "[]"},
    ]
    usage = streamed(gateway, {**body, "stream_options": {"include_usage": True}})[-1]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.8 * usage["prompt_tokens"]


def test_open_webuis_title_of_a_chat_is_generated(gateway: Gateway) -> None:
    asked = "### Task:\nGenerate a concise title.\n### Chat History:\n<chat_history>\nUSER: hello\n</chat_history>"
    body = {"model": MODEL, "messages": [{"role": "user", "content": asked}], "stream": False, **BRIEFLY}
    assert completed(gateway, body)["choices"][0]["message"]["content"]


# NextChat


def test_nextchats_conversation_with_a_plugin_is_answered(gateway: Gateway) -> None:
    messages: Messages = [{"role": "user", "content": "Search for tea."}]
    body = {
        "messages": messages,
        "stream": True,
        "model": MODEL,
        "temperature": 0.5,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "tools": [function("SearchWeb", "Search the web.", q={"type": "string", "maxLength": 12})],
    }
    headers = {"accept": "application/json", "cache-control": "no-store"}
    called = call(streamed(gateway, {**body, **CALLED}, headers))
    assert set(json.loads(called["function"]["arguments"])) == {"q"}
    messages += [
        {"role": "assistant", "tool_calls": [called]},  # without `content`
        {"name": "SearchWeb", "role": "tool", "content": "Nothing found.", "tool_call_id": called["id"]},
    ]
    assert text(streamed(gateway, {**body, **BRIEFLY, "tool_choice": "none"}, headers))


def test_nextchats_title_of_a_chat_is_generated(gateway: Gateway) -> None:
    messages = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Generate a title of four to five words."},
    ]
    penalties = {"presence_penalty": 0, "frequency_penalty": 0}
    body = {"messages": messages, "stream": False, "model": MODEL, "temperature": 0.5, "top_p": 1, **penalties}
    assert completed(gateway, {**body, **BRIEFLY})["choices"][0]["message"]["content"]


# LobeChat

LOBE_SEARCH: Final = function(
    "lobe-web-browsing____search____builtin", "Search the web.", query={"type": "string", "maxLength": 12}
)
LOBE_PARAMETERS: Final = {"model": MODEL, "stream": True, "temperature": 1, "top_p": 1}
PERSON: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_lobechats_conversation_with_a_tool_is_answered(gateway: Gateway) -> None:
    messages: Messages = [
        {"content": "You are brief.", "role": "system"},
        {"content": "Look it up.", "role": "user"},
    ]
    body = {
        **LOBE_PARAMETERS,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "messages": messages,
        "tools": [LOBE_SEARCH],
        "user": "user_1",
        "stream_options": {"include_usage": True},
    }
    called = call(streamed(gateway, {**body, **CALLED}, {"accept": "*/*"}))
    assert set(json.loads(called["function"]["arguments"])) == {"query"}
    name = LOBE_SEARCH["function"]["name"]
    messages += [
        {"content": "", "role": "assistant", "tool_calls": [called]},
        {"content": "Nothing found.", "name": name, "role": "tool", "tool_call_id": called["id"]},
    ]
    chunks = streamed(gateway, {**body, **BRIEFLY, "tool_choice": "none"}, {"accept": "*/*"})
    assert text(chunks)
    assert chunks[-1]["usage"]


def test_lobechats_objects_have_their_schema(gateway: Gateway) -> None:
    body = {
        "messages": [{"content": "Invent a person.", "role": "user"}],
        "model": MODEL,
        "response_format": {"json_schema": {"name": "person", "schema": PERSON, "strict": True}, "type": "json_schema"},
        "user": "user_1",
    }
    answer = completed(gateway, {**body, "max_tokens": 60})
    assert json.loads(answer["choices"][0]["message"]["content"]).keys() == {"name", "age"}


def test_lobechats_responses_mode_is_answered(gateway: Gateway) -> None:
    tool = {"type": "function", **LOBE_SEARCH["function"]}
    items: Messages = [
        {"content": "Look it up.", "role": "user"},
        {"arguments": '{"query": "it"}', "call_id": "call_1", "name": tool["name"], "type": "function_call"},
        {"call_id": "call_1", "output": "Nothing found.", "type": "function_call_output"},
        {"content": "Thanks.", "role": "user"},
    ]
    body = {**LOBE_PARAMETERS, "input": items, "store": False, "tools": [tool], "max_output_tokens": 8}
    with streaming(gateway, "/v1/responses", body, {"accept": "*/*"}) as events:
        assert [event["type"] for event in events][-1] in ("response.completed", "response.incomplete")


# Cherry Studio

CHERRY_HEADERS: Final = {
    "http-referer": "https://cherry-ai.com",
    "x-title": "Cherry Studio",
    "x-api-key": "none",
    "sec-fetch-dest": "empty",
    "sec-fetch-mode": "cors",
    "sec-fetch-site": "cross-site",
}
"""The page of a desktop program: a foreign page without an origin."""


def test_cherry_studios_conversation_with_a_tool_is_answered(gateway: Gateway) -> None:
    tool = function("mcp__search__web", "Search the web.", query={"type": "string", "maxLength": 12})
    parameters = {"$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False}
    tool["function"]["parameters"].update(parameters)
    messages: Messages = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Look it up."},
    ]
    body = {
        "model": MODEL,
        "enable_thinking": False,
        "messages": messages,
        "tools": [tool],
        "tool_choice": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    called = call(streamed(gateway, {**body, **CALLED}, CHERRY_HEADERS))
    assert set(json.loads(called["function"]["arguments"])) == {"query"}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": called["id"], "content": "Nothing found."},
    ]
    chunks = streamed(gateway, {**body, **BRIEFLY}, CHERRY_HEADERS)
    assert chunks[-1]["usage"]["completion_tokens"]
