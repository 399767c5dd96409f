"""The Responses API over HTTP with the official client: JSON, server-sent events, and stored responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.responses import Response

from tests.support.events import check_types
from tests.support.running import Gateway

# Byte 65 is the letter A; without a bias a random model may end its answer at any token.
ENDLESS: dict[str, Any] = {"logit_bias": {"65": 100}}


@pytest.fixture
def client(shared_server: Gateway) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=shared_server.url + "/v1", max_retries=0, timeout=60) as client:
        yield client


def ask(client: OpenAI, text: str = "你好", **fields: Any) -> Response:
    body = {"max_output_tokens": 5, "temperature": 0, "extra_body": ENDLESS, **fields}
    response = client.responses.create(model="tiny", input=text, **body)
    assert isinstance(response, Response)
    return response


def post(server: Gateway, body: object, path: str = "/v1/responses", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, headers={"content-type": "application/json", **headers})


def test_a_plain_request_is_answered_stored_and_continued(client: OpenAI) -> None:
    first = ask(client)
    assert (first.output_text, first.status) == ("AAAAA", "incomplete")
    assert client.responses.retrieve(first.id) == first
    second = ask(client, "再见", previous_response_id=first.id)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens == first.usage.input_tokens + 5 - 1


def test_a_stream_has_the_same_events_as_the_websocket_and_ends(client: OpenAI, shared_server: Gateway) -> None:
    body = {"input": "x", "stream": True, "max_output_tokens": 3, "temperature": 0, **ENDLESS}
    answer = post(shared_server, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *streamed, done = answer.text.strip("\n").split("\n\n")
    assert done == "data: [DONE]"
    frames = [frame.split("\n") for frame in streamed]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name.removeprefix("event: ") for name, _ in frames] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == sorted({event["sequence_number"] for event in events})
    for event in events:
        check_types(event)
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.incomplete"
    with client.responses.stream(model="tiny", input="x", max_output_tokens=3, extra_body=ENDLESS) as stream:
        kinds = [event.type for event in stream]
    assert kinds[-1] == "response.incomplete"
    assert "response.output_text.delta" in kinds


async def test_the_asynchronous_client_streams_too(shared_server: Gateway) -> None:
    async with AsyncOpenAI(api_key="none", base_url=shared_server.url + "/v1", max_retries=0, timeout=60) as client:
        stream = await client.responses.create(
            model="tiny", input="x", stream=True, max_output_tokens=4, extra_body=ENDLESS
        )
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
    assert text == "AAAA"


def test_a_deleted_response_is_not_found_and_later_turns_remain(client: OpenAI) -> None:
    first = ask(client)
    second = ask(client, previous_response_id=first.id)
    client.responses.delete(first.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(NotFoundError) as caught:
            call(first.id)
        assert caught.value.body["param"] == "response_id"  # type: ignore[index]
    with pytest.raises(BadRequestError):
        ask(client, previous_response_id=first.id)
    assert ask(client, previous_response_id=second.id).output_text == "AAAAA"


def test_input_items_are_listed_in_pages(client: OpenAI) -> None:
    first = ask(client, "one")
    second = ask(client, "two", previous_response_id=first.id)
    items = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    shown: list[Any] = [item.to_dict() for item in items]
    assert [item["role"] for item in shown] == ["user", "assistant", "user"]
    assert [item["content"][0]["text"] for item in shown] == ["one", "AAAAA", "two"]
    assert shown[1]["id"] == first.output[0].id
    newest = client.responses.input_items.list(second.id, limit=1)
    assert newest.has_more
    assert [item.id for item in newest.data] == [shown[2]["id"]]
    after = client.responses.input_items.list(second.id, after=shown[1]["id"], limit=5)
    assert [item.id for item in after.data] == [shown[0]["id"]]
    with pytest.raises(BadRequestError):
        client.responses.input_items.list(second.id, after="msg_0")


def test_input_tokens_are_counted_without_generating(client: OpenAI) -> None:
    first = ask(client, "hello")
    assert first.usage is not None
    assert client.responses.input_tokens.count(input="hello").input_tokens == first.usage.input_tokens
    more = client.responses.input_tokens.count(input="more", previous_response_id=first.id)
    assert more.input_tokens > first.usage.input_tokens + 5
    assert client.responses.input_tokens.count(input="x" * 5000).input_tokens > 5000


async def running(client: AsyncOpenAI, **fields: Any) -> tuple[Any, str]:
    """Start a stream; return it with its response's id."""
    stream = await client.responses.create(
        model="tiny", input="x", stream=True, max_output_tokens=400, extra_body=ENDLESS, **fields
    )
    created = ""
    async for event in stream:
        if event.type == "response.created":
            created = event.response.id
        if event.type == "response.output_text.delta":
            return stream, created
    raise AssertionError


async def settled(client: AsyncOpenAI, response: str) -> Response:
    """Wait until the response has ended, and return it."""
    async with asyncio.timeout(60):
        while True:
            found = await client.responses.retrieve(response)
            if found.status not in ("queued", "in_progress"):
                return found
            await asyncio.sleep(0.02)


async def test_a_running_response_is_cancelled_and_one_that_ended_is_not(shared_server: Gateway) -> None:
    async with AsyncOpenAI(api_key="none", base_url=shared_server.url + "/v1", max_retries=0, timeout=60) as client:
        stream, response = await running(client)
        with shared_server.suspended():
            assert (await client.responses.retrieve(response)).status == "in_progress"
        cancelled = await client.responses.cancel(response)
        assert cancelled.status == "cancelled"
        assert [event.type async for event in stream][-1] == "response.incomplete"
        with pytest.raises(BadRequestError, match="has already ended"):
            await client.responses.cancel(response)
        with pytest.raises(NotFoundError):
            await client.responses.cancel("resp_0")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_closed_request_cancels_its_response(shared_server: Gateway, stream: bool) -> None:
    async with AsyncOpenAI(api_key="none", base_url=shared_server.url + "/v1", max_retries=0, timeout=60) as client:
        if stream:
            opened, response = await running(client)
            await opened.close()
            assert (await settled(client, response)).status == "cancelled"
        else:
            request = asyncio.create_task(
                client.responses.create(model="tiny", input="x", max_output_tokens=450, extra_body=ENDLESS)
            )
            await counted(shared_server, "samovar_requests_running 1.0")
            cancelled = 'samovar_requests_total{code="",route="responses",status="cancelled"}'
            before = shared_server.metric("samovar_requests_total", code="", route="responses", status="cancelled")
            request.cancel()
            await counted(shared_server, f"{cancelled} {before + 1}")


async def counted(server: Gateway, line: str) -> None:
    """Wait until the metrics contain the line."""
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while True:
            if line in (await client.get(server.url + "/metrics")).text:
                return
            await asyncio.sleep(0.01)


async def test_a_second_reader_gets_all_events_after_starting_after(shared_server: Gateway) -> None:
    async with AsyncOpenAI(api_key="none", base_url=shared_server.url + "/v1", max_retries=0, timeout=60) as client:
        stream, response = await running(client)
        again = await client.responses.retrieve(response, stream=True, starting_after=2)
        events = [event async for event in again]
        assert events[0].sequence_number >= 3
        assert sum(len(event.delta) for event in events if event.type == "response.output_text.delta") == 400
        assert [event.type async for event in stream][-1] == events[-1].type == "response.incomplete"
        with pytest.raises(BadRequestError, match="starting_after"):
            await client.responses.retrieve(response, stream=True, starting_after=9999)


def test_nothing_of_an_unstored_response_is_left(client: OpenAI) -> None:
    response = ask(client, store=False)
    assert response.output_text == "AAAAA"
    with pytest.raises(NotFoundError):
        client.responses.retrieve(response.id)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        ({"input": 7}, 400, "invalid_request", "input"),
        ({"input": "x", "stream": 1}, 400, "invalid_request", "stream"),
        ({"input": "x", "stream_id": "a"}, 400, "unsupported_parameter", "stream_id"),
        ({"input": "x", "conversation": "c"}, 403, "invalid_request", "conversation"),
        ({"input": "x", "model": "gpt-5"}, 404, "model_not_found", "model"),
        ({"input": "x", "previous_response_id": "resp_0"}, 400, "previous_response_not_found", "previous_response_id"),
        ({"input": "x" * 600}, 400, "context_length_exceeded", "input"),
        (b'"' + b"x" * (1 << 20) + b'"', 413, "message_too_large", None),
    ],
)
def test_an_error_response_has_the_error_object_under_error(
    shared_server: Gateway, body: object, status: int, code: str, param: str | None
) -> None:
    answer = post(shared_server, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


def test_invalid_json_and_unknown_routes_get_a_json_error(shared_server: Gateway) -> None:
    plain = post(shared_server, {"input": "x"}, **{"content-type": "text/plain"})
    assert (plain.status_code, plain.json()["error"]["code"]) == (415, "invalid_request")
    assert shared_server.get("/v1/nothing").json()["error"]["code"] == "invalid_request"
    assert shared_server.get("/v1/responses").status_code == 405
    assert shared_server.get("/v1/responses/resp_0?colour=red").json()["error"]["code"] == "unsupported_parameter"
    assert shared_server.get("/v1/responses/resp_0?starting_after=1").json()["error"]["param"] == "starting_after"


async def test_a_failure_is_an_http_error_to_a_plain_request(tiny_server: Gateway) -> None:
    async with AsyncOpenAI(api_key="none", base_url=tiny_server.url + "/v1", max_retries=0, timeout=60) as client:
        await client.responses.create(model="tiny", input="x", max_output_tokens=1, extra_body=ENDLESS)
        [engine] = tiny_server.engines()
        engine.suspend()
        request = asyncio.create_task(
            client.responses.create(model="tiny", input="x", max_output_tokens=400, extra_body=ENDLESS)
        )
        await counted(tiny_server, "samovar_requests_running 1.0")
        while not request.done():  # an answer survives one engine's death
            tiny_server.kill_engines()
            await asyncio.sleep(0.05)
        with pytest.raises(APIStatusError) as caught:
            await request
    assert caught.value.status_code == 503
    assert caught.value.body["code"] == "engine_unavailable"  # type: ignore[index]
