"""A client that waits hears something at least every 15 seconds, here every few milliseconds, whatever it waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect

from gateway.app import build
from gateway.config.settings import load
from gateway.protocol.lanes import ACTIVE
from gateway.responses import runner
from gateway.responses.generation import Generation
from gateway.responses.preparation import prepare
from gateway.scheduling.dispatcher import Dispatcher
from gateway.transport import sse
from tests.process.test_losses import ENDLESS, TERMINAL, receive, say
from tests.support.serving import serving


@pytest_asyncio.fixture
async def full(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The URL of a gateway with intervals of 10 ms, and a function; until it is called, no engine has room."""
    monkeypatch.setattr(runner, "QUEUED_EVERY", 0.01)
    monkeypatch.setattr(sse, "ALIVE_EVERY", 0.01)
    place, has_room = Dispatcher.place, False

    def place_if_room(*args: Any) -> Any:
        return place(*args) if has_room else None

    def make_room() -> None:
        nonlocal has_room
        has_room = True
        responses.services.admission.pump()

    monkeypatch.setattr(Dispatcher, "place", place_if_room)
    app, responses = build(
        load({"model": str(tiny_model), "speculation": False, "context": 512, "state_dir": tmp_path})
    )
    responses.keep_alive = 0.01
    async with serving(app) as url:
        yield url, make_room


@asynccontextmanager
async def websocket(url: str) -> AsyncIterator[ClientConnection]:
    async with connect(url.replace("http", "ws") + "/v1/responses") as socket:
        yield socket


async def test_a_websocket_is_not_silent_while_its_request_waits_in_the_queue(
    full: tuple[str, Callable[[], None]],
) -> None:
    url, make_room = full
    async with websocket(url) as socket:
        await say(socket, max_output_tokens=1, stream_id="a")
        await receive(socket, "response.created")
        events = await receive(socket, "response.queued")
        events += [(await receive(socket, "keepalive"))[-1] for _ in range(3)]
        assert [event["type"] for event in events] == ["response.queued", *["keepalive"] * 3]
        make_room()
        events += await receive(socket, *TERMINAL)
        assert events[-1]["type"] == "response.incomplete"
        assert [event["sequence_number"] for event in events] == list(range(1, len(events) + 1))
        assert {event["stream_id"] for event in events} == {"a"}


@pytest_asyncio.fixture
async def unhurried(tmp_path: Path, tiny_model: Path) -> AsyncIterator[str]:
    """The URL of a gateway that keeps streams alive every 10 ms."""
    app, responses = build(
        load({"model": str(tiny_model), "speculation": False, "context": 512, "state_dir": tmp_path})
    )
    responses.keep_alive = 0.01
    async with serving(app) as url:
        yield url


async def test_a_websocket_is_not_silent_while_an_engine_computes_a_long_prompt(
    unhurried: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, computed = Generation.run, asyncio.Event()

    async def slow(*args: Any) -> None:
        await computed.wait()
        await run(*args)

    monkeypatch.setattr(Generation, "run", slow)
    async with websocket(unhurried) as socket:
        await say(socket, max_output_tokens=1)
        await receive(socket, "response.in_progress")
        for _ in range(3):
            await receive(socket, "keepalive")
        computed.set()
        assert (await receive(socket, *TERMINAL))[-1]["type"] == "response.incomplete"


async def test_a_websocket_is_not_silent_while_requests_wait_for_their_lanes_or_their_prompts(
    unhurried: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = asyncio.Event()

    async def slow(*args: Any) -> Any:
        await prepared.wait()
        return await prepare(*args)

    monkeypatch.setattr(runner, "prepare", slow)
    lanes = {str(number) for number in range(ACTIVE + 1)}
    async with websocket(unhurried) as socket:
        for lane in lanes:
            await say(socket, max_output_tokens=1, stream_id=lane)
        kept = [(await receive(socket, "keepalive")) for _ in range(2 * len(lanes))]
        assert all(len(events) == 1 for events in kept)
        assert {event["stream_id"] for [event] in kept} == lanes
        prepared.set()
        ended = [(await receive(socket, *TERMINAL))[-1] for _ in lanes]
        assert {event["stream_id"] for event in ended} == lanes
        assert {event["type"] for event in ended} == {"response.incomplete"}


async def test_official_clients_ignore_keep_alive_events(full: tuple[str, Callable[[], None]]) -> None:
    url, make_room = full
    async with AsyncOpenAI(api_key="none", base_url=f"{url}/v1") as client:
        async with client.responses.stream(model="tiny", input="x", max_output_tokens=1) as stream:
            seen = [event.type async for event in until(stream, lambda types: types.count("keepalive") == 2, make_room)]
            assert seen[-1] == "response.incomplete"
        async with client.responses.connect() as connection:
            await connection.response.create(model="tiny", input="x", max_output_tokens=1)
            async for event in connection:
                if event.type in TERMINAL:
                    break
            assert event.type == "response.incomplete"


async def until(
    stream: AsyncIterator[Any], enough: Callable[[list[str]], bool], then: Callable[[], None]
) -> AsyncIterator[Any]:
    """Pass events on, and call `then` once `enough` of their types."""
    types: list[str] = []
    async with asyncio.timeout(60):
        async for event in stream:
            types.append(event.type)
            if enough(types):
                then()
            yield event


CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
DONE = b"data: [DONE]"


@pytest.mark.parametrize(
    ("path", "body", "marker", "ending"),
    [
        ("/v1/responses", {"input": "x", "max_output_tokens": 1}, b"event: keepalive", DONE),
        ("/v1/chat/completions", CHAT, b": keep-alive", DONE),
        ("/v1/messages", CHAT, b'event: ping\ndata: {"type":"ping"}', b'data: {"type":"message_stop"}'),
    ],
)
async def test_a_waiting_stream_of_server_sent_events_is_not_silent(
    full: tuple[str, Callable[[], None]], path: str, body: dict[str, Any], marker: bytes, ending: bytes
) -> None:
    url, make_room = full
    received = b""
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(base_url=url, timeout=60) as client,
        client.stream("POST", path, json={**body, **ENDLESS, "stream": True}) as answer,
    ):
        async for chunk in answer.aiter_bytes():
            received += chunk
            if received.count(marker) == 2:
                make_room()
    assert received.count(marker) >= 2
    assert received.endswith(b"\n" + ending + b"\n\n")


async def test_a_waiting_client_of_ollama_gets_white_space_that_its_parser_skips(
    full: tuple[str, Callable[[], None]],
) -> None:
    url, make_room = full
    received = b""
    body = {"messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 1}}
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(base_url=url, timeout=60) as http,
        http.stream("POST", "/api/chat", json=body) as answer,
    ):
        async for chunk in answer.aiter_bytes():
            received += chunk
            if received.isspace() and len(received) >= 3:
                make_room()
    assert received.startswith(b"   ")
    assert json.loads(received.splitlines()[-1])["done"]
    assert all(json.loads(line) for line in received.splitlines())
