"""Faults of the gateway's own: every client gets an answer, its connection lives on, and the log quotes nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.app import build
from gateway.config.settings import load
from gateway.protocol.completions import Completion
from gateway.protocol.events import Event, InProgress
from gateway.protocol.outbox import Outbox
from gateway.protocol.response_events import ResponseEvents
from gateway.responses.generation import Generation
from gateway.responses.registry import Responses
from gateway.transport.websocket import Connection
from tests.process.test_losses import TERMINAL, receive
from tests.support.serving import serving

WORDS = "the words of a user"
CREATE = {"input": WORDS, "max_output_tokens": 2}


def fails(*_: object, **__: object) -> Any:
    raise ZeroDivisionError(WORDS)


@asynccontextmanager
async def gateway(tmp_path: Path, tiny_model: Path) -> AsyncIterator[str]:
    """The URL of a gateway in this process; whatever happens there, the log does not quote the user."""
    app, _ = build(load({"model": str(tiny_model), "context": 512, "state_dir": tmp_path}))
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        with structlog.testing.capture_logs() as logs:
            async with serving(app) as url:
                yield url
    finally:
        logging.getLogger().removeHandler(handler)
    faults = [line for line in logs if line["event"] == "internal error"]
    assert faults
    assert all("ZeroDivisionError" in line["error"] or "TypeError" in line["error"] for line in faults)
    assert all(
        any("test_internal_errors" in frame or "gateway/" in frame for frame in line["frames"]) for line in faults
    )
    assert WORDS not in f"{logs} {lines}"
    assert "Traceback" not in f"{lines}"


def socket(url: str) -> connect:
    return connect(url.replace("http", "ws") + "/v1/responses")


async def say(client: ClientConnection, **fields: Any) -> None:
    await client.send(msgspec.json.encode({"type": "response.create", **CREATE, **fields}).decode())


async def counted(url: str) -> list[str]:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    return [line for line in text.splitlines() if 'code="internal_error"' in line and not line.endswith(" 0.0")]


async def test_before_a_response_it_is_an_error_of_its_lane_which_goes_on(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(tmp_path, tiny_model) as url, socket(url) as client:
        with monkeypatch.context() as broken:
            broken.setattr(Responses, "start_response", fails)
            await say(client, stream_id="a")
            [error] = await receive(client, *TERMINAL)
        assert (error["status"], error["error"]["code"], error["stream_id"]) == (500, "internal_error", "a")
        assert error["request_id"] == error["error"]["request_id"]
        assert error["request_id"] in error["error"]["message"]
        await say(client, stream_id="a")
        assert (await receive(client, *TERMINAL))[-1]["type"] == "response.incomplete"
        assert await counted(url) == [
            'samovar_requests_total{code="internal_error",route="responses",status="rejected"} 1.0'
        ]


async def test_after_its_beginning_a_response_fails_and_its_lane_goes_on(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(tmp_path, tiny_model) as url, socket(url) as client:
        with monkeypatch.context() as broken:
            broken.setattr(Generation, "run", fails)
            await say(client)
            *_, failed = await receive(client, *TERMINAL)
            answer = await asyncio.to_thread(httpx.post, f"{url}/v1/responses", json=CREATE, timeout=20)
        assert (failed["type"], failed["response"]["error"]["code"]) == ("response.failed", "internal_error")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        await say(client)
        assert (await receive(client, *TERMINAL))[-1]["type"] == "response.incomplete"
        assert await counted(url) == [
            'samovar_requests_total{code="internal_error",route="responses",status="failed"} 2.0'
        ]


async def test_over_http_it_is_json_with_the_request_id(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Responses, "start_group", fails)
    async with gateway(tmp_path, tiny_model) as url, httpx.AsyncClient(base_url=url) as client:
        for path, body in (
            ("responses", CREATE),
            ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ):
            answer = await client.post(f"/v1/{path}", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
            assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
        assert len(await counted(url)) == 2


async def test_a_stream_of_server_sent_events_ends_with_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Completion, "feed", fails)
    monkeypatch.setattr("gateway.transport.sse.frame", Broken())
    async with gateway(tmp_path, tiny_model) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 2, "stream": True}
        chunks = (await client.post("/v1/chat/completions", json=body)).text.split("\n\n")
        assert msgspec.json.decode(chunks[0].removeprefix("data: "))["error"]["code"] == "internal_error"
        assert chunks[1:] == ["data: [DONE]", ""]
        events = (await client.post("/v1/responses", json={**CREATE, "stream": True})).text.split("\n\n")
        assert "internal_error" in events[-3]
        assert events[-2:] == ["data: [DONE]", ""]


class Broken:
    """Makes no frame but of an error."""

    def __call__(self, event: Event) -> bytes:
        if event.type != "error":
            fails()
        return b"data: %b\n\n" % msgspec.json.encode(event)


async def test_an_event_that_cannot_be_written_is_an_error_in_its_place(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResponseEvents, "in_progress", lambda _: InProgress(response={"x": object()}))
    async with gateway(tmp_path, tiny_model) as url, socket(url) as client:
        await say(client, stream_id="a")
        *_, error = await receive(client, *TERMINAL)
        assert (error["error"]["code"], error["stream_id"]) == ("internal_error", "a")
        assert (await receive(client, *TERMINAL))[-1]["type"] == "response.incomplete"


async def test_a_writer_that_fails_closes_the_connection_with_a_code(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(tmp_path, tiny_model) as url, socket(url) as client:
        with monkeypatch.context() as broken:
            broken.setattr(Outbox, "next", fails)
            await say(client)
            with pytest.raises(ConnectionClosed) as closed:
                await receive(client, *TERMINAL)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "internal_error")


async def test_a_reader_that_fails_closes_the_connection_with_a_code(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(tmp_path, tiny_model) as url:
        monkeypatch.setattr(Connection, "_receive", fails)
        async with socket(url) as client:
            await say(client)
            with pytest.raises(ConnectionClosed) as closed:
                await receive(client, *TERMINAL)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "internal_error")
