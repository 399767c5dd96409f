"""Bodies that clients really send, answered by a gateway, and the fields that are listed as ignored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Gateway, said
from tests.support.tiny_model import write_tiny_model

HI: dict[str, Any] = {"role": "user", "content": "hi"}
PARTS = [{"type": "input_text", "text": "hi"}]
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
LETTERS = {str(ord(letter)): 100 for letter in "abcdefghij"}
"""A `logit_bias` with which the tiny model writes only these."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for all tests of this file; its model's template has the option to think."""
    folder = tmp_path_factory.mktemp("shapes")
    model = write_tiny_model(folder / "tiny.gguf", template=TEMPLATE)
    with Gateway(folder / "state", model=model, context=512) as running:
        yield running


def ask(gateway: Gateway, path: str, **body: Any) -> tuple[dict[str, Any], str]:
    """The body of an answer with status 200, and what its header lists as ignored."""
    answer = gateway.post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers.get("x-samovar-ignored", "")


def respond(gateway: Gateway, **body: Any) -> tuple[dict[str, Any], str]:
    return ask(gateway, "/v1/responses", **{"input": "hi", "max_output_tokens": 2, **body})


def complete(gateway: Gateway, **body: Any) -> tuple[dict[str, Any], str]:
    return ask(gateway, "/v1/chat/completions", **{"messages": [HI], "max_tokens": 2, **body})


CODEX: dict[str, Any] = {
    "instructions": "You are Codex.", "input": [{"type": "message", "role": "user", "content": PARTS}],
    "tools": [TOOL, {"type": "web_search", "external_web_access": False}, {"type": "custom", "name": "apply_patch"},
              {"type": "namespace", "name": "multi_agent_v1", "description": "d", "tools": []}],
    "tool_choice": "auto", "parallel_tool_calls": True, "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
    "client_metadata": {"turn_id": "t"}, "text": {"verbosity": "low"},
}  # fmt: skip
AI_SDK: dict[str, Any] = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "reasoning_effort": "low",
    "verbosity": "low", "prompt_cache_key": "k", "store": True, "user": "u", "safety_identifier": "s",
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        (CODEX, ", ".join(["reasoning", "prompt_cache_key", "client_metadata", "tools[web_search]", "tools[custom]",
                           "tools[namespace]", "include[reasoning.encrypted_content]", "text.verbosity"])),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}, HI]},
         "input[reasoning]"),
        ({"user": "u", "safety_identifier": "s", "service_tier": "priority", "max_tool_calls": 5},
         "user, safety_identifier, service_tier, max_tool_calls"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [TOOL]}},
         "tool_choice.tools[].parameters"),
        ({"seed": 1 << 62, "top_k": -1, "temperature": 1, "top_logprobs": 0}, ""),
    ],
    ids=["codex", "reasoning", "identifiers", "allowed-tools", "numbers"],
)  # fmt: skip
def test_responses_answer_what_clients_send(gateway: Gateway, body: dict[str, Any], ignored: str) -> None:
    assert respond(gateway, **body)[1] == ignored


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        (AI_SDK, "reasoning_effort, verbosity, prompt_cache_key, user, safety_identifier, store"),
        ({"max_tokens": -1, "max_completion_tokens": 2, "seed": -1, "top_k": -1, "repetition_penalty": 1.1}, ""),
        ({"": 1}, "?"),
        ({"return_progress": True, "timings_per_token": True, "cache_prompt": True, "ignore_eos": True},
         "return_progress, timings_per_token, cache_prompt, ignore_eos"),
        ({"messages": [{"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "e"}}]},
                       {"role": "user", "content": None}, {"role": "function", "name": "f", "content": "1"}, HI]},
         "messages[].content[].cache_control"),
        ({"messages": [HI, {"role": "tool", "content": None, "tool_call_id": "gone"}, HI]}, ""),
        ({"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "", "type": "function", "function": {"name": "mcp.server.tool", "arguments": {"a": 1}}}]},
            {"role": "tool", "tool_call_id": "", "content": "1"}]}, ""),
        ({"tools": [{"type": "function", "function": {"name": "name.x" * 12}}, {"type": "custom"}]}, "tools[custom]"),
        ({"stream_options": {"include_usage": True}, "logprobs": False, "top_logprobs": 0}, "stream_options"),
        ({"messages": [HI, {"role": "assistant", "content": "he"}], "continue_final_message": True,
          "add_generation_prompt": False}, ""),
        ({"truncation": "auto", "messages": [{"role": "user", "content": "x" * 1100}, HI, HI]}, ""),
    ],
    ids=["ai-sdk", "unset", "nameless", "llama-server", "contents", "orphan", "mcp", "tools", "contradictions",
         "continue", "truncation"],
)  # fmt: skip
def test_chat_completions_answer_what_clients_send(gateway: Gateway, body: dict[str, Any], ignored: str) -> None:
    assert complete(gateway, **body)[1] == ignored


def test_a_stream_has_the_header_and_lists_the_same_in_its_first_event(gateway: Gateway) -> None:
    body = {"input": "hi", "max_output_tokens": 1, "stream": True, "prompt_cache_key": "k"}
    answer = gateway.post("/v1/responses", body)
    assert answer.headers["x-samovar-ignored"] == "prompt_cache_key"
    [created] = [line for line in answer.text.splitlines() if '"response.created"' in line and line.startswith("data")]
    assert json.loads(created.removeprefix("data: "))["ignored"] == ["prompt_cache_key"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    chat = gateway.post(
        "/v1/chat/completions", {"messages": [HI], "max_tokens": 1, "stream": True, "stream_options": options}
    )
    assert chat.headers["x-samovar-ignored"] == "stream_options.continuous_usage_stats"
    assert chat.text.endswith("data: [DONE]\n\n")


async def test_a_websocket_lists_ignored_fields_in_the_created_event_and_only_there(gateway: Gateway) -> None:
    async with gateway.connect() as conversation:
        events = await conversation.ask("hi", max_output_tokens=1, reasoning={"effort": "low"})
        assert [getattr(event, "ignored", None) for event in events[:2]] == [["reasoning"], None]
        events = await conversation.ask("hi", max_output_tokens=1)
        assert not hasattr(events[0], "ignored")


def test_a_referenced_item_is_shown_to_the_model_and_keeps_its_id(gateway: Gateway) -> None:
    first, _ = respond(gateway, max_output_tokens=3, seed=1)
    message = first["output"][0]
    second, _ = respond(gateway, input=[HI, {"type": "item_reference", "id": message["id"]}, HI])
    text = message["content"][0]["text"]
    sent, _ = respond(gateway, input=[HI, {"role": "assistant", "content": text}, HI])
    assert second["usage"]["input_tokens"] == sent["usage"]["input_tokens"]
    items = gateway.get(f"/v1/responses/{second['id']}/input_items?order=asc").json()["data"]
    assert items[1] == message
    later = [{"id": message["id"]}, {"id": second["output"][0]["id"]}, HI]
    third, _ = respond(gateway, input=later)  # the second response has the item of the first
    assert third["status"] in ("completed", "incomplete")
    assert gateway.delete(f"/v1/responses/{first['id']}").status_code == 200
    assert ask(gateway, "/v1/responses/input_tokens", input=later)[0]["input_tokens"] > 0
    assert gateway.delete(f"/v1/responses/{second['id']}").status_code == 200
    gone = gateway.post("/v1/responses", {"input": later})
    assert (gone.status_code, gone.json()["error"]["param"]) == (404, "input[1].id")


@pytest.mark.parametrize("item", ["msg_1", f"msg_{'0' * 32}", f"rs_{'a' * 32}", "x"])
def test_a_reference_to_an_unknown_item_is_not_found(gateway: Gateway, item: str) -> None:
    answer = gateway.post("/v1/responses", {"input": [HI, {"type": "item_reference", "id": item}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "invalid_request", "input[1].id")


def test_the_output_of_a_function_needs_its_call(gateway: Gateway) -> None:
    output = {"type": "function_call_output", "call_id": "c1", "output": "1"}
    answer = gateway.post("/v1/responses", {"input": [HI, output]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_request", "input[1].call_id")
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    first, _ = respond(gateway, input=[HI, call])
    respond(gateway, previous_response_id=first["id"], input=[output])
    called, _ = respond(gateway, tools=[TOOL], tool_choice="required", max_output_tokens=200, temperature=0)
    [made] = [item for item in called["output"] if item["type"] == "function_call"]
    respond(gateway, input=[HI, {"id": made["id"]}, {**output, "call_id": made["call_id"]}])


async def test_an_output_without_call_ends_an_unstored_conversation(gateway: Gateway) -> None:
    output = {"type": "function_call_output", "call_id": "c1", "output": "1"}
    async with gateway.connect() as conversation:
        first = (await conversation.ask("hi", max_output_tokens=1, store=False))[-1].response.id
        message = {"type": "response.create", "previous_response_id": first, "store": False}
        await conversation.send({**message, "input": [output]})
        [error] = await conversation.events()
        assert (error.type, error.error.code) == ("error", "invalid_request")
        await conversation.send({**message, "input": "hi"})
        [error] = await conversation.events()
        assert error.error.code == "previous_response_not_found"


def test_a_trailing_answer_is_continued_and_found_again_in_the_cache(gateway: Gateway) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "logit_bias": LETTERS}
    whole, _ = complete(gateway, **options)
    text = whole["choices"][0]["message"]["content"]
    halves = text[: len(text) // 2], text[len(text) // 2 :]
    started = [HI, {"role": "assistant", "content": halves[0]}]
    rest, _ = complete(gateway, messages=started, **options)
    assert rest["choices"][0]["message"]["content"].startswith(halves[1])
    answer = {"role": "assistant", "content": halves[0] + rest["choices"][0]["message"]["content"]}
    usage = complete(gateway, messages=[HI, answer, HI], **options)[0]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= rest["usage"]["total_tokens"] - 1
    again = complete(gateway, messages=[HI, {"role": "assistant", "content": text}], **options)[0]["usage"]
    assert again["prompt_tokens"] == whole["usage"]["total_tokens"]  # nothing is between the answer and the rest of it


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_thinking_reaches_the_template(gateway: Gateway, path: str) -> None:
    name = "input" if path == "/v1/responses" else "messages"
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    sizes = []
    for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        answer, _ = ask(gateway, path, **{name: [HI], limit: 1, "chat_template_kwargs": options})
        sizes.append(answer["usage"].get("input_tokens") or answer["usage"]["prompt_tokens"])
    assert sizes[0] == sizes[1] == sizes[2] - len("<think>")


async def test_reasoning_that_the_prompt_opens_is_no_part_of_the_answer(gateway: Gateway) -> None:
    options = {"chat_template_kwargs": {"enable_thinking": True}, "logit_bias": {str(ord("a")): 100}}
    chat, _ = ask(gateway, "/v1/chat/completions", messages=[HI], max_tokens=3, **options)
    message = chat["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("aaa", "")
    response, _ = ask(gateway, "/v1/responses", input="hi", max_output_tokens=3, **options)
    [thought] = response["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "aaa"}])
    listed = gateway.get(f"/v1/responses/{response['id']}/input_items").json()
    assert [item["type"] for item in listed["data"]] == ["message"]
    follow, _ = ask(gateway, "/v1/responses", input="more", max_output_tokens=1, previous_response_id=response["id"])
    assert follow["status"] == "incomplete"
    async with gateway.connect() as conversation:
        events = await conversation.ask("hi", max_output_tokens=2, **options)
        assert "response.reasoning_text.delta" in [event.type for event in events]


async def test_half_an_emoji_does_not_lock_a_conversation(gateway: Gateway) -> None:
    async with gateway.connect() as conversation:
        await conversation.send('\ufeff{"type":"response.create","input":"a\\ud83d","max_output_tokens":1}')
        first = (await conversation.events())[-1].response
        items = gateway.get(f"/v1/responses/{first.id}/input_items").json()["data"]
        assert items[0]["content"][0]["text"] == "a\ufffd"
        events = await conversation.ask("b", previous_response_id=first.id, max_output_tokens=1)
        assert events[-1].type in ("response.completed", "response.incomplete"), said(events)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_the_advice_for_a_prompt_that_is_too_long_works_on_its_endpoint(gateway: Gateway, path: str) -> None:
    name = "input" if path == "/v1/responses" else "messages"
    long = {name: [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y"}] * 2 + [HI]}
    refused = gateway.post(path, long)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert 'truncation: "auto"' in refused.json()["error"]["message"]
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    assert ask(gateway, path, **{**long, limit: 1}, truncation="auto")[0]["usage"]["total_tokens"] < 512


async def test_strict_fields_refuse_hints_and_name_them(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path, model=tiny_model, context=512, strict_fields="true") as strict:
        for path, body in (
            ("/v1/responses", {"input": "hi", "prompt_cache_key": "k"}),
            ("/v1/chat/completions", {"messages": [HI], "prompt_cache_key": "k"}),
        ):
            error = strict.post(path, body).json()["error"]
            assert (error["code"], error["param"]) == ("unsupported_parameter", "prompt_cache_key")
        async with strict.connect() as conversation:
            [refused] = await conversation.ask("hi", prompt_cache_key="k")
            assert (refused.error.code, refused.error.param) == ("unsupported_parameter", "prompt_cache_key")


async def test_a_running_response_is_not_disturbed_by_requests_that_need_it(gateway: Gateway) -> None:
    async with gateway.connect() as conversation:
        endless = {"logit_bias": LETTERS, "max_output_tokens": 300, "temperature": 0}
        await conversation.send({"type": "response.create", "input": "hi", **endless})
        response, item, last = "", "", None
        async for event in conversation.stream():
            if event.type == "response.output_text.delta" and not item:
                item = event.item_id
                for fields in ({"previous_response_id": response}, {"input": [{"id": item}]}):
                    refused = gateway.post("/v1/responses/input_tokens", fields)
                    assert refused.json()["error"]["code"] == "invalid_request"
                    assert "still running" in refused.json()["error"]["message"]
            elif event.type == "response.created":
                response = event.response.id
            elif event.type in ("response.completed", "response.incomplete", "response.failed"):
                last = event
                break
        assert last is not None
        assert last.type == "response.incomplete"
        assert ask(gateway, "/v1/responses/input_tokens", input=[{"id": item}])[0]["input_tokens"] > 300
