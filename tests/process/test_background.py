"""Responses in the background: started, left alone, polled, streamed and cancelled."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from gateway.app import build
from gateway.config.settings import load
from gateway.conversations.turns import Turn
from gateway.responses.turn_writer import TurnWriter
from tests.support.running import Gateway, said
from tests.support.serving import serving

# Byte 65 is the letter A; without a bias a random model may end its answer at any token.
ENDLESS: dict[str, Any] = {"logit_bias": {"65": 100}}
LONG = 400
"""Tokens of an answer that is still running when the next request arrives."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Gateway]:
    """One gateway for all tests of this file; a response without a client is cancelled at once."""
    with Gateway(tmp_path_factory.mktemp("background") / "state", model=tiny_model, context=512, resume_grace=0) as one:
        yield one


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="none", base_url=gateway.url + "/v1", max_retries=0, timeout=60) as client:
        yield client


async def start(client: AsyncOpenAI, **fields: Any) -> Any:
    """Start a response in the background."""
    wanted = {"input": "x", "background": True, "max_output_tokens": LONG, "extra_body": ENDLESS, **fields}
    return await client.responses.create(model="tiny", **wanted)


async def settled(client: AsyncOpenAI, response: str) -> Any:
    """Wait until the response has ended, and return it."""
    async with asyncio.timeout(60):
        while True:
            found = await client.responses.retrieve(response)
            if found.status not in ("queued", "in_progress"):
                return found
            await asyncio.sleep(0.02)


@asynccontextmanager
async def suspended(gateway: Gateway, client: AsyncOpenAI) -> AsyncIterator[list[psutil.Process]]:
    """Suspend the engines, so that no response ends meanwhile."""
    await client.responses.create(model="tiny", input="x", max_output_tokens=1)  # loads an engine
    engines = gateway.engines()
    for engine in engines:
        engine.suspend()
    try:
        yield engines
    finally:
        for engine in engines:
            if engine.is_running():
                engine.resume()


async def test_the_request_returns_at_once_and_the_response_is_polled_and_continued(
    gateway: Gateway, client: AsyncOpenAI
) -> None:
    assert (await start(client, max_output_tokens=1)).status == "queued"
    async with suspended(gateway, client):
        started = await start(client, max_output_tokens=5)
        assert started.status == "queued"
        assert (started.background, started.output_text, started.usage) == (True, "", None)
        assert (await client.responses.retrieve(started.id)).background is True
    ended = await settled(client, started.id)
    assert (ended.status, ended.background, ended.output_text) == ("incomplete", True, "AAAAA")
    after = await start(client, previous_response_id=started.id, background=False, max_output_tokens=1)
    assert after.usage.input_tokens_details.cached_tokens == ended.usage.input_tokens + 5 - 1


async def test_its_events_are_streamed_and_closing_that_stream_does_not_cancel_it(
    gateway: Gateway, client: AsyncOpenAI
) -> None:
    async with suspended(gateway, client):
        started = await start(client)
        for _ in range(2):
            stream = await client.responses.retrieve(started.id, stream=True)
            first: Any = await anext(aiter(stream))
            assert (first.type, first.response.status) == ("response.created", "queued")
            await stream.close()
        stream = await client.responses.retrieve(started.id, stream=True, starting_after=0)
    events = [event async for event in stream]
    assert events[0].sequence_number == 1
    assert said(events) == "A" * LONG
    assert (await client.responses.retrieve(started.id)).output_text == "A" * LONG


async def test_closing_a_streamed_request_does_not_cancel_it(client: AsyncOpenAI) -> None:
    stream = await start(client, stream=True)
    created = (await anext(aiter(stream))).response
    await stream.close()
    assert (await settled(client, created.id)).output_text == "A" * LONG


async def test_closing_the_socket_does_not_cancel_it(gateway: Gateway, client: AsyncOpenAI) -> None:
    async with gateway.connect() as conversation:
        message = {"type": "response.create", "input": "x", "background": True, "max_output_tokens": LONG, **ENDLESS}
        await conversation.send(message)
        created = (await anext(conversation.stream())).response
    assert (await settled(client, created.id)).output_text == "A" * LONG


async def test_it_is_cancelled_and_deleted_by_request(client: AsyncOpenAI) -> None:
    cancelled = await client.responses.cancel((await start(client)).id)
    assert (cancelled.status, cancelled.background) == ("cancelled", True)
    with pytest.raises(BadRequestError, match="has already ended"):
        await client.responses.cancel(cancelled.id)
    started = await start(client)
    await client.responses.delete(started.id)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(started.id)


async def test_it_must_be_stored(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        await start(client, store=False)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "store")


async def test_completions_have_no_background(gateway: Gateway) -> None:
    message = {"role": "user", "content": "x"}
    for path, body in (("chat/completions", {"messages": [message]}), ("completions", {"prompt": "x"})):
        error = gateway.post(f"/v1/{path}", {**body, "background": True}).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "background")


@pytest.mark.slow
async def test_a_response_that_was_started_is_found_after_a_crash_of_the_gateway(tiny_server: Gateway) -> None:
    client = AsyncOpenAI(api_key="none", base_url=tiny_server.url + "/v1", max_retries=0, timeout=60)
    async with client, suspended(tiny_server, client) as engines:
        started = await start(client)
        tiny_server.stop(signal.SIGKILL)
        for engine in engines:
            engine.kill()
    tiny_server.start()
    found = tiny_server.get(f"/v1/responses/{started.id}").json()
    assert (found["status"], found["incomplete_details"]["reason"]) == ("incomplete", "interrupted")


async def test_its_end_is_shown_once_it_can_be_continued(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, save = asyncio.Event(), TurnWriter.save

    async def slow(self: TurnWriter, turn: Turn, ids: list[int] | None) -> int:
        with suppress(TimeoutError):
            await asyncio.wait_for(shown.wait(), 1)
        return await save(self, turn, ids)

    monkeypatch.setattr(TurnWriter, "save", slow)
    app, _ = build(load({"model": str(tiny_model), "speculation": False, "context": 512, "state_dir": tmp_path}))
    async with (
        serving(app) as url,
        AsyncOpenAI(api_key="none", base_url=url + "/v1", max_retries=0, timeout=60) as client,
    ):
        started = await start(client, max_output_tokens=1)
        assert (await settled(client, started.id)).status == "incomplete"
        shown.set()
        after = await start(client, previous_response_id=started.id, background=False, max_output_tokens=1)
        assert after.status == "incomplete"
