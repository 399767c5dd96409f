"""Chat completions: accepted and rejected requests, the chunks, and unmodified popular clients."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.conversations.histories import TENANT_TOKENS, TENANTS, Histories
from gateway.errors import ApiError
from gateway.prompts.constraints import form
from gateway.protocol.chat import ChatCreate, Stateless, read_chat
from gateway.protocol.completions import Completion
from gateway.protocol.items import input_item, messages
from gateway.protocol.requests import FunctionCall, FunctionCallOutput, InputMessage
from tests.process.test_tools import CALL, TIME, WEATHER, emitted
from tests.support.commands import keys
from tests.support.events import plain
from tests.support.running import Gateway

USER: dict[str, Any] = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {key: value for key, value in WEATHER.items() if key != "type"}}


def read(**fields: Any) -> tuple[Stateless, ChatCreate]:
    return read_chat({"messages": [USER], **fields})


def refused(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    return caught.value.code, caught.value.param


def client(gateway: Gateway) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="none", base_url=gateway.url + "/v1", max_retries=0)


def test_messages_of_every_role_become_items() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    request, _ = read(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "茶"}], "name": "ada"},
            {"role": "assistant", "content": "b", "refusal": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "d", "tool_call_id": "c1"},
            {"role": "developer", "content": "e"},
        ]
    )
    assert request.instructions == "Be brief."
    assert request.items == [
        InputMessage("user", "a茶"),
        InputMessage("assistant", "b"),
        FunctionCall(call_id="c1", name="f", arguments="{}"),
        FunctionCallOutput(call_id="c1", output="d"),
        InputMessage("system", "e"),
    ]
    assert (request.is_stored, request.is_ephemeral) == (False, False)


def test_fields_keep_their_meaning() -> None:
    request, chat = read(
        max_tokens=5, max_completion_tokens=7, temperature=0.5, top_k=3, seed=4, stop="。", logit_bias={"5": 1},
        tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}, logprobs=True,
        top_logprobs=2, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
        stream=True, stream_options={"include_usage": True}, store=False,
    )  # fmt: skip
    assert (request.max_output_tokens, request.temperature, request.top_k, request.seed) == (7, 0.5, 3, 4)
    assert request.stops == ("。",)
    assert request.logit_bias == {5: 1.0}
    assert request.functions[0].name == "get_weather"
    assert request.logprobs == 2
    assert request.is_ephemeral
    assert chat.stream


def test_unsupported_fields_with_neutral_values_are_accepted() -> None:
    read(
        n=1, user="ada", parallel_tool_calls=True, modalities=["text"], service_tier="auto", functions=None, store=None
    )
    read(tools=[], response_format={"type": "text"}, logprobs=False, stream=False)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": None}, "invalid_request", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_request", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_request", "messages[0]"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "invalid_request", "messages[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_parameter",
         "messages[0].content[0]"),
        ({"n": 9}, "unsupported_parameter", "n"),
        ({"n": 0}, "invalid_request", "n"),
        ({"n": True}, "invalid_request", "n"),
        ({"functions": [{}]}, "unsupported_parameter", "functions"),
        ({"audio": {}}, "unsupported_parameter", "audio"),
        ({"store": "yes"}, "invalid_request", "store"),
        ({"temperature": 3}, "invalid_request", "temperature"),
        ({"top_logprobs": 2}, "invalid_request", "top_logprobs"),
        ({"stream_options": 1}, "invalid_request", "stream_options"),
        ({"stop": ["a", ""]}, "invalid_request", "stop"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_request", "tools[0].function.name"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_rejected_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    assert refused(**fields) == (code, param)


def completion() -> Completion:
    return Completion("resp_1", created=1, model="m", fingerprint="samovar-1", logprobs=False, usage=True)


@pytest.mark.parametrize("text", ["Hello.", f"I look.\n{CALL}", CALL, ""])
def test_chunks_and_whole_completions_have_the_same_content(text: str) -> None:
    events, streamed = emitted(text, 3, tools=[WEATHER]), completion()
    chunks = [ChatCompletionChunk.model_validate(chunk) for event in events for chunk in streamed.feed(event)]
    whole = ChatCompletion.model_validate(completion().whole(plain(events[-1])["response"]))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    message = whole.choices[0].message
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    if message.tool_calls:
        assert calls[0].id == message.tool_calls[0].id
        arguments = "".join(call.function.arguments or "" for call in calls if call.function)
        assert arguments == message.tool_calls[0].function.arguments  # type: ignore[union-attr]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert whole.choices[0].finish_reason == ("tool_calls" if CALL in text else "stop")
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks} | {whole.id}) == 1


def test_choices_of_one_completion_have_their_index_and_count_the_prompt_once() -> None:
    texts = ["Hello.", CALL]
    sources = [emitted(text, 3, tools=[WEATHER]) for text in texts]
    make = partial(Completion, "resp_1", created=1, model="m", fingerprint="f", logprobs=False, usage=True, count=2)
    streamed = make()
    fed = [(event, index) for pair in zip_longest(*sources) for index, event in enumerate(pair) if event is not None]
    chunks = [ChatCompletionChunk.model_validate(c) for event, index in fed for c in streamed.feed(event, index)]
    ended = [plain(events[-1])["response"] for events in sources]
    whole = ChatCompletion.model_validate(make().whole(*ended))
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert [choice.finish_reason for choice in whole.choices] == ["stop", "tool_calls"]
    for choice in whole.choices:
        of_choice = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert of_choice[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in of_choice) == (choice.message.content or "")
        assert of_choice[-1].finish_reason == choice.finish_reason
    assert [c.usage for c in chunks if c.usage is not None] == [whole.usage]
    assert chunks[-1].choices == []
    assert whole.usage is not None
    usages = [response["usage"] for response in ended]
    assert whole.usage.prompt_tokens == usages[0]["input_tokens"]
    assert whole.usage.completion_tokens == sum(usage["output_tokens"] for usage in usages)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def history(*texts: str) -> list[dict[str, Any]]:
    """Alternating messages, starting with a user's."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_the_longest_known_history_is_found_and_only_for_its_tenant() -> None:
    histories, (request, _) = Histories(), read()
    histories.store("a", request, history("x", "y"), [1, 2], "resp_1")
    histories.store("a", request, history("x", "y", "z", "w"), [1, 2, 3, 4], "resp_2")
    found = histories.find("a", request, history("x", " y\n", "z", "w", "?"))
    assert found is not None
    assert (found.messages, found.ids, found.response) == (4, [1, 2, 3, 4], "resp_2")
    branch = histories.find("a", request, history("x", "y", "other"))
    assert branch is not None
    assert branch.ids == [1, 2]
    assert histories.find("a", request, history("x", "changed", "z")) is None
    assert histories.find("b", request, history("x", "y", "z")) is None
    assert histories.find("a", read(tools=[TOOL])[0], history("x", "y", "z")) is None


def test_histories_with_calls_are_found_for_any_spelling_of_their_arguments() -> None:
    def said(arguments: str) -> list[dict[str, Any]]:
        call = FunctionCall(call_id="c1", name="f", arguments=arguments)
        return messages([input_item(i, lambda p: p) for i in (InputMessage("user", "x"), call)])

    histories, (request, _) = Histories(), read()
    histories.store("a", request, said('{"a": 1, "b": "茶"}'), [1], "resp_1")
    assert histories.find("a", request, [*said('{"b":"\\u8336","a":1}'), *history("next")]) is not None


def test_the_number_of_histories_is_bounded() -> None:
    histories, (request, _) = Histories(), read()
    for i in range(40):
        histories.store("a", request, history(str(i), "y"), [0] * (TENANT_TOKENS // 10), f"resp_{i}")
    kept = [i for i in range(40) if histories.find("a", request, history(str(i), "y"))]
    assert kept == list(range(30, 40))
    for i in range(TENANTS + 5):
        histories.store(f"t{i}", request, history("x", "y"), [1], "resp_1")
    assert histories.find("a", request, history("39", "y")) is None


def test_a_schema_error_names_the_field_of_chat_completions() -> None:
    wrong = {"type": "object", "properties": {"a": {"not": {}}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": wrong, "strict": True}}
    answer = {"type": "json_schema", "json_schema": {"name": "a", "schema": wrong}}
    for fields, param in (
        ({"tools": [tool]}, "tools[0].function.parameters.properties.a.not"),
        ({"response_format": answer}, "response_format.json_schema.schema.properties.a.not"),
    ):
        request, _ = read(**fields)
        with pytest.raises(ApiError) as caught:
            form(request.functions, request.choice, request.format, request.error_paths)
        assert caught.value.param == param


async def test_a_stateless_client_gets_every_known_token_from_the_cache(shared_server: Gateway) -> None:
    async with client(shared_server) as openai:
        said: list[Any] = [{"role": "system", "content": "s"}]
        seen = 0
        for turn in range(4):
            said.append({"role": "user", "content": f"{turn}茶"})
            answer = await openai.chat.completions.create(model="tiny", messages=said, max_tokens=10, seed=turn)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            assert (answer.usage.prompt_tokens_details.cached_tokens or 0) >= seen - 1
            seen = answer.usage.total_tokens
            said.append({"role": "assistant", "content": answer.choices[0].message.content})
    with closing(sqlite3.connect(shared_server.state / "conversations.db")) as database:
        assert database.execute("SELECT count(*) FROM records").fetchone() == (0,)


async def test_a_stream_ends_with_its_reason_its_usage_and_done(shared_server: Gateway) -> None:
    async with client(shared_server) as openai:
        stream = await openai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=12, stream=True, logprobs=True,
            top_logprobs=1, stream_options={"include_usage": True}, temperature=0,
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        whole = await openai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=12, logprobs=True, temperature=0
        )
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    assert re.fullmatch(r"samovar-\S+-llama-cpp-python-\S+-[0-9a-f]{12}", whole.system_fingerprint or "")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or []) == 12


async def test_several_answers_share_one_prompt_and_each_has_its_own_seed(tiny_server: Gateway) -> None:
    def count(name: str, **labels: str) -> float:
        return tiny_server.metric(name, **labels)

    question: Any = [{"role": "user", "content": "tea " * 60}]
    requests = count("samovar_requests_total", route="chat_completions")
    computed = count("samovar_prompt_tokens_total", source="computed")
    async with client(tiny_server) as openai:
        whole = await openai.chat.completions.create(model="tiny", messages=question, n=8, seed=5, max_tokens=6)
        assert whole.usage is not None
        prompt = whole.usage.prompt_tokens
        assert whole.usage.completion_tokens <= 8 * 6
        assert count("samovar_prompt_tokens_total", source="computed") - computed < 1.5 * prompt
        assert count("samovar_requests_total", route="chat_completions") - requests == 8
        texts = [choice.message.content for choice in whole.choices]
        assert [choice.index for choice in whole.choices] == list(range(8))
        assert len(set(texts)) > 1
        third = await openai.chat.completions.create(model="tiny", messages=question, seed=5 + 2, max_tokens=6)
        assert third.choices[0].message.content == texts[2]
        stream = await openai.chat.completions.create(
            model="tiny", messages=question, n=3, seed=5, max_tokens=6, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        streamed, usages = ["", "", ""], []
        async for chunk in stream:
            usages += [chunk.usage] if chunk.usage else []
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts[:3]
    assert [usage.prompt_tokens for usage in usages] == [prompt]


async def test_closing_a_request_cancels_all_its_answers(shared_server: Gateway) -> None:
    def cancelled() -> float:
        return shared_server.metric("samovar_requests_total", route="chat_completions", status="cancelled")

    question: Any = [{"role": "user", "content": "x"}]
    before = cancelled()
    async with client(shared_server) as openai:
        stream = await openai.chat.completions.create(
            model="tiny", messages=question, n=3, max_tokens=400, stream=True, logit_bias={"65": 100}
        )
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(30):
            while cancelled() < before + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def test_several_answers_are_one_request_to_the_limits_of_a_user(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path, model=tiny_model, context=512, user_concurrency=1, queue_limit=0) as gateway:
        bearer = {"Authorization": f"Bearer {keys(gateway.state, 'add', 'anna')}"}
        body = {"messages": [USER], "n": 8, "max_tokens": 6}
        answered = gateway.post("/v1/chat/completions", body, **bearer)
        assert answered.status_code == 200
        assert len(answered.json()["choices"]) == 8
        endless = {"input": "x", "background": True, "max_output_tokens": 400, "logit_bias": {"65": 100}}
        with gateway.suspended():
            running = gateway.post("/v1/responses", endless, **bearer).json()["id"]
            refused = gateway.post("/v1/chat/completions", body, **bearer)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
            assert (gateway.metric("samovar_requests_running"), gateway.metric("samovar_requests_waiting")) == (1, 0)
        assert gateway.post(f"/v1/responses/{running}/cancel", {}, **bearer).status_code == 200


def test_a_stream_has_the_format_that_clients_parse(shared_server: Gateway) -> None:
    body = {"messages": [USER], "stream": True, "max_tokens": 2}
    raw = httpx.post(f"{shared_server.url}/v1/chat/completions", json=body, timeout=30)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("\n\ndata: [DONE]\n\n")


async def test_errors_raise_the_clients_own_exceptions(shared_server: Gateway) -> None:
    async with client(shared_server) as openai:
        with pytest.raises(BadRequestError) as caught:
            await openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], n=9)
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "n")
        nowhere = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}}
        with pytest.raises(BadRequestError) as caught:
            await openai.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}], extra_body={"response_format": nowhere}
            )
        assert caught.value.code == "invalid_request"


@pytest.mark.slow
async def test_a_small_model_calls_a_function_for_a_stateless_client(server: Gateway) -> None:
    tools: Any = [TOOL, {"type": "function", "function": {"name": TIME["name"]}}]
    async with client(server) as openai:
        said: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
        first = await openai.chat.completions.create(
            model="smollm2-135m-instruct", messages=said, tools=tools, temperature=0,
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
        )  # fmt: skip
        message = first.choices[0].message
        assert first.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls
        (call,) = message.tool_calls
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER["parameters"])
        said += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
        second = await openai.chat.completions.create(
            model="smollm2-135m-instruct", messages=said, tools=tools, tool_choice="none", max_tokens=20
        )
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert first.usage is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.total_tokens - 1
