"""A client that waits for an engine hears something at least every 15 seconds, here every few milliseconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from gateway.app import build
from gateway.config.settings import load
from gateway.responses import runner
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
    monkeypatch.setattr(runner, "QUEUED_AGAIN", 0.01)
    monkeypatch.setattr(sse, "ALIVE_EVERY", 0.01)
    place, has_room = Dispatcher.place, False

    def place_if_room(*args: Any) -> Any:
        return place(*args) if has_room else None

    def make_room() -> None:
        nonlocal has_room
        has_room = True
        responses.services.admission.pump()

    monkeypatch.setattr(Dispatcher, "place", place_if_room)
    app, responses = build(load({"model": str(tiny_model), "context": 512, "state_dir": tmp_path}))
    async with serving(app) as url:
        yield url, make_room


async def test_a_waiting_request_repeats_its_position_over_the_websocket(full: tuple[str, Callable[[], None]]) -> None:
    url, make_room = full
    async with connect(url.replace("http", "ws") + "/v1/responses") as socket:
        await say(socket, max_output_tokens=1)
        queued = [(await receive(socket, "response.queued", *TERMINAL))[-1] for _ in range(3)]
        assert [event.get("queue_position") for event in queued] == [1, 1, 1]
        make_room()
        assert (await receive(socket, *TERMINAL))[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize(
    ("path", "body", "marker"),
    [
        ("/v1/responses", {"input": "x", "max_output_tokens": 1}, b"event: response.queued"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}, b": keep-alive"),
    ],
)
async def test_a_waiting_stream_of_server_sent_events_is_not_silent(
    full: tuple[str, Callable[[], None]], path: str, body: dict[str, Any], marker: bytes
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
    assert received.endswith(b"\n\ndata: [DONE]\n\n")


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
