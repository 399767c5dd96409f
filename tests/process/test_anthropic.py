"""Anthropic's Messages API with the official client, unmodified, at a gateway with the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import (
    Anthropic,
    APIStatusError,
    AsyncAnthropic,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
)
from anthropic.types import Message, MessageParam, ToolParam
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import build
from gateway.config.settings import load
from gateway.scheduling.dispatcher import Dispatcher
from tests.support.commands import keys
from tests.support.running import Gateway
from tests.support.serving import serving

MODEL = "smollm2-135m-instruct"
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "Tell the weather of a city. 查询天气。",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY: dict[str, Any] = {"temperature": 0}


@pytest.fixture(scope="module")
def client(server: Gateway) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=100) as client:
        yield client


def ask(client: Anthropic, *messages: MessageParam, most: int = 20, **fields: Any) -> Message:
    fields = {"extra_body": GREEDY, **fields}
    answer = client.messages.create(model=MODEL, max_tokens=most, messages=messages, **fields)
    assert isinstance(answer, Message)
    return answer


def user(text: str) -> MessageParam:
    return {"role": "user", "content": text}


def said(answer: Message) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


@pytest.mark.slow
def test_a_second_turn_reuses_the_prompt_of_the_first(client: Anthropic) -> None:
    first = ask(client, user("What is a samovar?"), system="You are brief.")
    assert said(first)
    assert (first.role, first.model, first.stop_reason) == ("assistant", MODEL, "max_tokens")
    assert first.id.startswith("msg_")
    assert first._request_id is not None
    assert first._request_id.startswith("req_")
    before = first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    assert first.usage.output_tokens == 20
    history: list[MessageParam] = [user("What is a samovar?"), {"role": "assistant", "content": first.content}]
    second = ask(client, *history, user("And where?"), system=[{"type": "text", "text": "You are brief."}])
    cached = second.usage.cache_read_input_tokens
    assert cached is not None
    assert before + 20 - 1 <= cached < before + 20 + second.usage.input_tokens
    assert second.usage.cache_creation_input_tokens == 0


@pytest.mark.slow
def test_the_stream_helper_shows_the_text_and_ends_with_the_same_message(client: Anthropic) -> None:
    asked = user("Say hello.")
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "messages": [asked], "extra_body": GREEDY}
    with client.messages.stream(**body) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = ask(client, asked, most=12)
    assert text == said(final) == said(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert final.usage.cache_read_input_tokens is not None


@pytest.mark.slow
def test_an_answer_continues_what_the_client_has_begun_and_so_does_the_next_turn(client: Anthropic) -> None:
    begun: list[MessageParam] = [
        user("Which city is the capital of France?"),
        {"role": "assistant", "content": "It is"},
    ]
    answer = ask(client, *begun, most=5)
    assert not said(answer).startswith("It is")
    complete: MessageParam = {"role": "assistant", "content": "It is" + said(answer)}
    tokens = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) + answer.usage.output_tokens
    again = ask(client, begun[0], complete, user("Thanks."), most=1)
    assert (again.usage.cache_read_input_tokens or 0) >= tokens - 1


@pytest.mark.slow
def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    answer = ask(client, user("Say hello."), stop_sequences=["nowhere", "e"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "e")
    assert "e" not in said(answer)


@pytest.mark.slow
def test_no_tokens_fill_the_cache_for_the_next_request(client: Anthropic) -> None:
    asked = user("A question that is asked in this test only, about samovars and what they are made of.")
    prepared = ask(client, asked, most=0)
    assert (prepared.content, prepared.usage.output_tokens) == ([], 0)
    answer = ask(client, asked, most=1)
    assert answer.usage.cache_read_input_tokens
    assert answer.usage.input_tokens < prepared.usage.input_tokens


@pytest.mark.slow
def test_tokens_are_counted_as_they_are_used(client: Anthropic) -> None:
    asked, tools = user("Say hello."), [WEATHER]
    counted = client.messages.count_tokens(model=MODEL, messages=[asked], tools=tools, system="You are brief.")
    usage = ask(client, asked, most=1, tools=tools, system="You are brief.").usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.slow
def test_what_has_no_effect_is_listed(client: Anthropic) -> None:
    fields: dict[str, Any] = {"metadata": {"user_id": "ada"}, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    raw = client.messages.with_raw_response.create(model=MODEL, max_tokens=1, messages=[user("x")], **fields)
    assert set(raw.headers["x-samovar-ignored"].split(", ")) == {"metadata", "thinking.budget_tokens"}
    assert raw.headers["request-id"] == raw.headers["x-request-id"]


def error(caught: pytest.ExceptionInfo[Any]) -> tuple[str, str]:
    """The type and the message of an error, whose form is Anthropic's."""
    body: Any = caught.value.body
    assert body.keys() == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    assert body["request_id"] == caught.value.request_id
    return body["error"]["type"], body["error"]["message"]


@pytest.mark.slow
def test_errors_have_the_form_that_the_client_knows(client: Anthropic) -> None:
    with pytest.raises(NotFoundError) as unknown:
        client.messages.create(model="claude-x", max_tokens=1, messages=[user("x")])
    assert error(unknown)[0] == "not_found_error"
    picture: Any = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    with pytest.raises(BadRequestError) as refused:
        ask(client, {"role": "user", "content": [picture]})
    kind, message = error(refused)
    assert (kind, "`image`" in message) == ("invalid_request_error", True)
    with pytest.raises(BadRequestError) as long:
        ask(client, user("tea " * 50_000))
    assert error(long)[1].startswith("prompt is too long: ")
    with pytest.raises(APIStatusError) as large:
        ask(client, user("x" * (1 << 20)))
    assert (large.value.status_code, error(large)[0]) == (413, "request_too_large")


@pytest.mark.slow
def test_errors_of_router_and_middleware_have_that_form_too(server: Gateway) -> None:
    url = f"{server.url}/v1/messages"
    refusals = {
        405: httpx.get(url),
        404: httpx.post(f"{url}/nowhere", json={}),
        403: httpx.post(url, json={}, headers={"origin": "https://evil.example"}),
        415: httpx.post(url, content="x", headers={"content-type": "text/plain"}),
        400: httpx.post(url, content="{", headers={"content-type": "application/json"}),
    }
    types = {403: "permission_error", 404: "not_found_error"}
    for status, response in refusals.items():
        assert response.status_code == status
        assert response.json()["error"]["type"] == types.get(status, "invalid_request_error")
        assert response.json()["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert "code" in httpx.get(f"{server.url}/v1/nowhere").json()["error"]


@pytest.mark.slow
def test_requests_are_counted_under_a_route_of_their_own(client: Anthropic, server: Gateway) -> None:
    def counted() -> float:
        families = text_string_to_metric_families(server.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return sum(s.value for s in samples if s.name == "samovar_requests_total" and s.labels["route"] == "messages")

    before = counted()
    ask(client, user("x"), most=1)
    with pytest.raises(BadRequestError):
        ask(client)
    assert counted() == before + 2


def test_a_key_is_accepted_in_either_header_and_the_model_has_other_names(tmp_path: Path, tiny_model: Path) -> None:
    key = keys(tmp_path, "add", "anna")
    fields: Any = {"model": "claude-haiku-4-5", "max_tokens": 0, "messages": [user("x")]}
    with Gateway(tmp_path, model=tiny_model, context=512, aliases="claude-haiku-4-5=tiny") as gateway:
        for header in ({"api_key": key}, {"auth_token": key, "api_key": None}):
            with Anthropic(base_url=gateway.url, max_retries=0, **header) as client:
                assert client.messages.create(**fields).stop_reason == "max_tokens"
        with (
            Anthropic(base_url=gateway.url, api_key="wrong", max_retries=0) as stranger,
            pytest.raises(AuthenticationError) as refused,
        ):
            stranger.messages.create(**fields)
    assert error(refused)[0] == "authentication_error"


@pytest.mark.slow
async def test_a_failure_within_a_stream_is_an_error_event(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatcher, "place", lambda *_: None)  # no engine has room
    app, _ = build(
        load(
            {"model": str(tiny_model), "speculation": False, "context": 512, "state_dir": tmp_path, "queue_timeout": 1}
        )
    )
    async with serving(app) as url, AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        stream = await client.messages.create(model="tiny", max_tokens=1, messages=[user("x")], stream=True)
        assert (await anext(aiter(stream))).type == "message_start"
        with pytest.raises(APIStatusError) as failed:
            await anext(aiter(stream))
    assert error(failed)[0] == "overloaded_error"
