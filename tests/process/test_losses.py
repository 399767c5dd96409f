"""Clients that read slowly, vanish and come back, and gateways that stop: what each of them loses, which is little."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.app import build
from gateway.auth.principal import Principal
from gateway.config.settings import load
from gateway.conversations.unstored import Unstored
from gateway.protocol.events import TerminalEvent, TextDelta
from gateway.protocol.log import EVENTS, Reader
from gateway.protocol.outbox import Outbox
from gateway.protocol.requests import ResponseCreate, parse
from gateway.responses import registry
from gateway.responses.runner import Running
from gateway.responses.turn_writer import STORED_EVERY
from tests.support.running import Conversation, Gateway, said

# Byte 65 is the letter A; without a bias a random model may end its answer at any token.
ENDLESS: dict[str, Any] = {"logit_bias": {"65": 100}, "temperature": 0}
TERMINAL = ("response.completed", "response.incomplete", "response.failed", "error")


@asynccontextmanager
async def wire(server: Gateway, **options: Any) -> AsyncIterator[ClientConnection]:
    """A bare socket, for a client that misbehaves."""
    async with connect(server.url.replace("http", "ws") + "/v1/responses", **options) as socket:
        yield socket


async def say(socket: ClientConnection, **fields: Any) -> None:
    await socket.send(msgspec.json.encode({"type": "response.create", "input": "x", **ENDLESS, **fields}).decode())


async def receive(socket: ClientConnection, *kinds: str) -> list[dict[str, Any]]:
    """Events up to one of these kinds."""
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while not events or events[-1]["type"] not in kinds:
            events.append(msgspec.json.decode(await socket.recv()))
    return events


def vanish(socket: ClientConnection) -> None:
    """Lose the connection without a close frame."""
    socket.transport.abort()


def text(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


async def settled(server: Gateway, response: str) -> dict[str, Any]:
    """The response once it has ended."""
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while True:
            found: dict[str, Any] = (await client.get(f"{server.url}/v1/responses/{response}")).json()
            if found.get("status") not in ("queued", "in_progress"):
                return found
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Gateway]:
    """A gateway that waits a fifth of a second for clients that vanished."""
    with Gateway(tmp_path_factory.mktemp("impatient"), model=tiny_model, context=512, resume_grace=0.2) as gateway:
        yield gateway


async def test_a_disconnected_client_resumes_its_answer_where_it_lost_it(shared_server: Gateway) -> None:
    async with wire(shared_server) as socket:
        await say(socket, max_output_tokens=400, stream_id="a")
        before = await receive(socket, "response.output_text.delta")
        response = before[0]["response"]["id"]
        vanish(socket)
    async with wire(shared_server) as socket:
        resume = {
            "type": "response.resume", "response_id": response, "starting_after": before[-1]["sequence_number"],
            "stream_id": "b",
        }  # fmt: skip
        await socket.send(msgspec.json.encode(resume).decode())
        after = await receive(socket, *TERMINAL)
        assert text(before) + text(after) == "A" * 400
        assert {event["stream_id"] for event in after} == {"b"}
        assert after[-1]["response"]["status"] == "incomplete"
        await say(socket, previous_response_id=response, max_output_tokens=2)
        assert text(await receive(socket, *TERMINAL)) == "AA"


async def test_the_end_of_an_answer_is_sent_to_a_client_that_resumes_after_the_grace_period(
    impatient: Gateway,
) -> None:
    async with wire(impatient) as socket:
        await say(socket, max_output_tokens=5)
        response = (await receive(socket, *TERMINAL))[-1]["response"]["id"]
    await asyncio.sleep(0.4)
    async with wire(impatient) as socket:
        await socket.send(f'{{"type":"response.resume","response_id":"{response}","starting_after":3}}')
        [last] = await receive(socket, *TERMINAL)
        assert (last["type"], last["sequence_number"]) == ("response.incomplete", 4)
        assert last["response"]["output"][0]["content"][0]["text"] == "AAAAA"
        streamed = await asyncio.to_thread(impatient.get, f"/v1/responses/{response}?stream=true")
        assert streamed.text.startswith("event: response.incomplete\n")
        assert streamed.text.endswith("\n\ndata: [DONE]\n\n")
        await socket.send('{"type":"response.resume","response_id":"resp_0","stream_id":"a"}')
        [error] = await receive(socket, *TERMINAL)
        assert (error["error"]["param"], error["response_id"], error["stream_id"]) == ("response_id", "resp_0", "a")


async def test_a_response_that_no_client_resumes_in_time_is_cancelled_and_stored(impatient: Gateway) -> None:
    async with wire(impatient) as socket:
        await say(socket, max_output_tokens=450)
        response = (await receive(socket, "response.output_text.delta"))[0]["response"]["id"]
        for engine in impatient.engines():
            engine.suspend()
        vanish(socket)
    await asyncio.sleep(0.5)
    for engine in impatient.engines():
        engine.resume()
    ended = await settled(impatient, response)
    assert (ended["status"], ended["incomplete_details"]["reason"]) == ("cancelled", "cancelled")
    assert "no client resumed it" in ended["incomplete_details"]["message"]


@pytest.mark.parametrize("fields", [{}, {"store": False}])
async def test_a_close_frame_ends_what_its_connection_asked_for(shared_server: Gateway, fields: dict[str, Any]) -> None:
    async with wire(shared_server) as watcher:
        async with wire(shared_server) as socket:
            await say(socket, max_output_tokens=450, **fields)
            response = (await receive(socket, "response.output_text.delta"))[0]["response"]["id"]
            if fields:
                vanish(socket)
        if not fields:
            assert (await settled(shared_server, response))["status"] == "cancelled"
        await say(watcher, previous_response_id=response)
        [*_, last] = await receive(watcher, *TERMINAL)
        if fields:
            assert last["error"]["code"] in ("previous_response_not_found", "invalid_request")


@pytest.mark.slow
async def test_a_client_that_does_not_read_costs_little_memory_slows_no_other_and_receives_everything_later(
    shared_server: Gateway,
) -> None:
    async with wire(shared_server, max_queue=1) as slow, shared_server.connect() as other:
        slow.transport.pause_reading()
        before = shared_server.process.memory_info().rss
        for number in range(60):
            await say(slow, max_output_tokens=450, stream_id=f"lane{number % 30}")
        for _ in range(5):
            events = await other.ask("x", max_output_tokens=50, **ENDLESS)
            assert said(events) == "A" * 50
        assert shared_server.process.memory_info().rss - before < 64 << 20
        slow.transport.resume_reading()
        ended, letters, frames = 0, 0, 0
        async with asyncio.timeout(90):
            while ended < 60:
                event = msgspec.json.decode(await slow.recv())
                ended += event["type"] in TERMINAL
                letters += len(event.get("delta", ""))
                frames += "delta" in event
        assert letters == 60 * 450
        assert frames < letters  # runs of deltas came as one


def end_slow(running: Running, _: Reader) -> None:
    running.on_lag()


async def test_a_response_whose_reader_is_too_slow_is_cancelled_unless_another_client_reads_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    app, responses = build(
        load({"model": str(tiny_model), "speculation": False, "context": 512, "state_dir": tmp_path})
    )
    request = parse(msgspec.json.encode({"type": "response.create", "input": "x", "max_output_tokens": 450, **ENDLESS}))
    assert isinstance(request, ResponseCreate)
    async with app.router.lifespan_context(app):
        for holders, status in ((1, "cancelled"), (2, "incomplete")):
            unstored = Unstored(responses.services.pool.forget)
            running = await responses.start_response(request, principal=Principal("t", "u"), unstored=unstored)
            for _ in range(holders - 1):
                running.hold()
            reader = Reader(running.log)
            box = Outbox(lambda: None, partial(end_slow, running), lambda _: None)
            box.attach(reader)
            async with asyncio.timeout(60):
                while True:
                    if running.log.end >= 5:  # it is under way, and far from its end
                        break
                    await asyncio.sleep(0)
            delta = TextDelta(output_index=0, item_id="msg_1", content_index=0, delta="x", logprobs=[])
            for _ in range(EVENTS):  # as many as a long answer would bring
                running.log.append(delta)
            async with asyncio.timeout(60):
                await running.task
            [last] = [event for event in iter(box.next, None) if isinstance(event, TerminalEvent)]
            assert last.response["status"] == status
            explanation = (last.response["incomplete_details"] or {}).get("message", "")
            assert ("read too slowly" in explanation) is (status == "cancelled")


async def test_an_ended_response_counts_with_all_its_texts(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "KEPT_BYTES", 16_000)
    app, responses = build(
        load({"model": str(tiny_model), "speculation": False, "context": 512, "state_dir": tmp_path})
    )
    principal, metadata = Principal("t", "u"), {f"key {i}": "x" * 500 for i in range(16)}
    body = {"type": "response.create", "input": "x", "max_output_tokens": 1, "metadata": metadata}
    request = parse(msgspec.json.encode(body))
    assert isinstance(request, ResponseCreate)
    async with app.router.lifespan_context(app):
        ended = []
        for _ in range(2):
            unstored = Unstored(responses.services.pool.forget)
            running = await responses.start_response(request, principal=principal, unstored=unstored)
            async with asyncio.timeout(60):
                await running.task
            ended.append(running)
        first, second = (responses.find_response(principal, running.id) for running in ended)
        assert (first, second) == (None, ended[1])
        responses.drop_ended(ended[1])
        assert responses.find_response(principal, ended[1].id) is None


async def test_a_flood_of_bad_frames_is_answered_one_by_one_and_costs_nothing(shared_server: Gateway) -> None:
    async with wire(shared_server) as socket:

        async def flood() -> None:
            for _ in range(2000):
                await socket.send("{")

        sending = asyncio.create_task(flood())
        async with asyncio.timeout(30):
            for _ in range(2000):
                error = msgspec.json.decode(await socket.recv())["error"]
                assert error["code"] in ("invalid_json", "rate_limit_exceeded")
        await sending


async def test_a_stopping_gateway_lets_answers_end_refuses_new_ones_and_sends_clients_away(
    tiny_server: Gateway,
) -> None:
    async with wire(tiny_server) as idle, wire(tiny_server) as busy:
        await say(busy, max_output_tokens=450)
        events = await receive(busy, "response.output_text.delta")
        with tiny_server.suspended():
            tiny_server.process.send_signal(signal.SIGTERM)
            await expect_closed(idle)
            await say(busy, stream_id="late")
            events += await receive(busy, "error")
            assert (events[-1]["error"]["code"], events[-1]["stream_id"]) == ("engine_unavailable", "late")
        if not any(event["type"] in TERMINAL[:-1] for event in events):
            events += await receive(busy, *TERMINAL)
        ends = [event["response"]["status"] for event in events if event["type"] == "response.incomplete"]
        assert ends == ["incomplete"]
        assert text(events) == "A" * 450
        await expect_closed(busy)
    assert tiny_server.wait() == 0


async def test_a_request_whose_prompt_is_encoded_while_the_gateway_begins_to_stop_is_refused(
    tiny_server: Gateway,
) -> None:
    async with wire(tiny_server) as idle, wire(tiny_server) as socket:
        await say(socket, max_output_tokens=1)
        await receive(socket, *TERMINAL)
        workers = tiny_server.prompt_workers()
        assert workers
        for worker in workers:
            worker.suspend()
        await say(socket, stream_id="a")
        await socket.send("{")
        await receive(socket, "error")  # and so the gateway has read the request
        tiny_server.process.send_signal(signal.SIGTERM)
        await expect_closed(idle)
        for worker in workers:
            worker.resume()
        [refused] = await receive(socket, *TERMINAL)
        assert (refused["type"], refused["error"]["code"]) == ("error", "engine_unavailable")
    assert tiny_server.wait() == 0


async def expect_closed(socket: ClientConnection) -> None:
    """Expect that the gateway, because it stops, closes a connection on which nothing else comes."""
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(socket.recv(), 60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 450, "logit_bias": {"65": 100}}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "x", "max_output_tokens": 450, "logit_bias": {"65": 100}},
    "/v1/chat/completions": {**CHAT, "model": "tiny"},
}


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True], ids=["engine works", "engine hangs"])
async def test_a_second_signal_ends_every_response_with_its_terminal_event(
    tmp_path: Path, tiny_model: Path, hangs: bool
) -> None:
    with Gateway(tmp_path / "state", model=tiny_model, context=512, cores=1) as gateway:
        async with (
            wire(gateway) as socket,
            wire(gateway) as idle,
            httpx.AsyncClient(base_url=gateway.url, timeout=60) as client,
        ):
            await say(socket, max_output_tokens=450)
            await receive(socket, "response.output_text.delta")
            for engine in gateway.engines():
                engine.suspend()
            streams = [client.stream("POST", path, json={**body, "stream": True}) for path, body in PATHS.items()]
            plain = [asyncio.create_task(client.post(path, json=body)) for path, body in PATHS.items()]
            reader, writer = await unfinished(gateway)
            opened = [await stream.__aenter__() for stream in streams]
            while sum(await gauges(client, "samovar_requests_running", "samovar_requests_waiting")) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            gateway.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):  # the gateway has seen the first signal
                await idle.recv()
            if not hangs:
                for engine in gateway.engines():
                    engine.resume()
            gateway.process.send_signal(signal.SIGINT)
            events = await receive(socket, *TERMINAL)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            streamed = [(await stream.aread()).decode().strip().split("\n\n") for stream in opened]
            answers = await asyncio.gather(*plain)
            cut = await reader.read()
            writer.close()
        assert await asyncio.to_thread(gateway.wait) == 0
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    status = "failed" if hangs else "cancelled"
    assert events[-1]["response"]["status"] == status
    assert f'"status":"{status}"' in streamed[0][-2]
    assert streamed[0][-1] == "data: [DONE]"
    assert streamed[1][-1] == "data: [DONE]"
    errors = [answer.json()["error"]["code"] for answer in answers]
    errors.append(json.loads(streamed[1][-2].removeprefix("data: "))["error"]["code"])
    errors.append(json.loads(cut.rpartition(b"\r\n\r\n")[2])["error"]["code"])
    assert errors == ["engine_unavailable"] * 4
    assert [answer.status_code for answer in answers] == [503, 503]
    assert "Traceback" not in gateway.log()
    assert gateway.log().count('"event": "stopping"') == 1


async def gauges(client: httpx.AsyncClient, *names: str) -> list[float]:
    """Return the values of metrics without labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return [float(line.split()[1]) for line in lines if line.split()[0] in names]


async def unfinished(gateway: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin a request whose body never ends, and return its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    head = (
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    writer.write(head.encode())
    return reader, writer


@pytest.mark.slow
async def test_an_answer_cut_off_by_a_crash_is_kept_as_far_as_it_came_and_can_be_continued(
    tiny_server: Gateway,
) -> None:
    async with tiny_server.connect() as conversation, tiny_server.connect() as other:
        await conversation.send({"type": "response.create", "input": "x", "max_output_tokens": 450, **ENDLESS})
        response = await first_text(conversation)
        engines = tiny_server.engines()
        for engine in engines:
            engine.suspend()  # or the answer would be whole before the gateway is killed
        await other.send({"type": "response.create", "input": "x", "store": False, **ENDLESS})
        secret = (await anext(other.stream())).response.id
        await asyncio.sleep(2 * STORED_EVERY)
        output = tiny_server.get(f"/v1/responses/{response}").json()["output"]
        tiny_server.stop(signal.SIGKILL)
        for engine in engines:
            engine.kill()
    tiny_server.start()
    found = tiny_server.get(f"/v1/responses/{response}").json()
    assert (found["status"], found["incomplete_details"]["reason"]) == ("incomplete", "interrupted")
    [message] = found["output"]
    assert (message["status"], message["content"]) == ("incomplete", output[0]["content"])
    spoken = len(message["content"][0]["text"])
    assert 0 < spoken <= found["usage"]["output_tokens"] < 450
    assert tiny_server.get(f"/v1/responses/{secret}").status_code == 404
    async with tiny_server.connect() as conversation:
        events = await conversation.ask("y", previous_response_id=response, max_output_tokens=2, **ENDLESS)
        assert said(events) == "AA"
        assert events[-1].response.usage.input_tokens > spoken


async def first_text(conversation: Conversation) -> str:
    """The id of the response, once its first text came."""
    response = ""
    async for event in conversation.stream():
        if event.type == "response.created":
            response = event.response.id
        if event.type == "response.output_text.delta":
            return response
    raise AssertionError
