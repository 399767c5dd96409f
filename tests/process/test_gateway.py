"""The gateway over the network with the tiny model: errors, queue, cancel, restart, shutdown."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from tests.support.running import Gateway, said

# Byte 65 is the letter A; without a bias a random model may end its answer at any token.
ENDLESS = {"logit_bias": {"65": 100}, "temperature": 0}


def usage(events: list[Any]) -> tuple[int, int]:
    """Return (prompt tokens, of which cached)."""
    report = events[-1].response.usage
    return report.input_tokens, report.input_tokens_details.cached_tokens


async def test_a_next_turn_computes_only_its_new_tokens_also_after_a_restart(tiny_server: Gateway) -> None:
    async with tiny_server.connect() as conversation:
        first = await conversation.ask("茶炊是什么?" + "你好，" * 20, max_output_tokens=20, **ENDLESS)
        prompt, cached = usage(first)
        assert said(first) == "A" * 20
        assert cached == 0
        following = {"previous_response_id": first[-1].response.id, "max_output_tokens": 20, **ENDLESS}
        second = await conversation.ask("?", **following)
        assert usage(second)[1] == prompt + 20 - 1
    engines = tiny_server.engines()
    assert engines
    assert tiny_server.stop(signal.SIGINT) == 0
    _, alive = psutil.wait_procs(engines, timeout=10)
    assert alive == []
    tiny_server.start()
    async with tiny_server.connect() as conversation:
        following = {"previous_response_id": second[-1].response.id, "max_output_tokens": 3, **ENDLESS}
        third = await conversation.ask("再见", **following)
    assert usage(third)[1] == usage(second)[0] + 20 - 1
    assert third[-1].type == "response.incomplete"
    metrics = tiny_server.get("/metrics").text
    assert f'samovar_prompt_tokens_total{{source="store"}} {usage(third)[1]}.0' in metrics
    assert 'samovar_store_up{backend="sqlite"} 1.0' in metrics


async def test_an_acknowledged_turn_outlives_a_killed_gateway_and_no_engine_is_left(tiny_server: Gateway) -> None:
    async with tiny_server.connect() as conversation:
        first = await conversation.ask("hello", max_output_tokens=3, **ENDLESS)
        engines = tiny_server.engines()
        assert engines
        tiny_server.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(engines, timeout=10)
    assert alive == []
    tiny_server.start()
    async with tiny_server.connect() as conversation:
        second = await conversation.ask(
            "more", previous_response_id=first[-1].response.id, max_output_tokens=3, **ENDLESS
        )
    assert second[-1].type == "response.incomplete"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_json"),
        ('{"type":"response.create","input":7}', "invalid_request"),
        ('{"type":"response.create","input":"x","audio":{"voice":"a"}}', "unsupported_parameter"),
        ('{"type":"response.create","input":"x","model":"gpt-5"}', "model_not_found"),
        ('{"type":"response.create","input":"x","logit_bias":{"999999":1}}', "invalid_request"),
        ('{"type":"response.create","input":"x","previous_response_id":"resp_0"}', "previous_response_not_found"),
        ('{"type":"response.create","input":"' + "x" * 600 + '"}', "context_length_exceeded"),
        ('{"type":"response.create","input":"' + "x" * (1 << 20) + '"}', "message_too_large"),
        ('{"type":"response.cancel","response_id":"resp_0"}', "invalid_request"),
    ],
)
async def test_an_error_has_its_code_and_the_connection_stays_open(
    shared_server: Gateway, message: str, code: str
) -> None:
    async with shared_server.connect() as conversation:
        await conversation.send(message)
        [error] = await conversation.events()
        assert (error.type, error.error.code) == ("error", code)
        assert said(await conversation.ask("x", max_output_tokens=2, **ENDLESS)) == "AA"


async def test_a_cancel_ends_an_answer_and_its_text_is_stored(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        await conversation.send({"type": "response.create", "input": "x", "max_output_tokens": 400, **ENDLESS})
        text, created = "", ""
        async for event in conversation.stream():
            if event.type == "response.output_text.delta":
                text += event.delta
                if len(text) == len(event.delta):
                    await conversation.send({"type": "response.cancel", "response_id": created})
            elif event.type == "response.created":
                created = event.response.id
            elif event.type == "response.incomplete":
                break
        assert event.response.status == "cancelled"
        assert event.response.incomplete_details is not None
        assert event.response.output_text == text
        assert 0 < len(text) < 400
        assert (
            said(await conversation.ask("go on", previous_response_id=created, max_output_tokens=2, **ENDLESS)) == "AA"
        )


async def test_a_stop_string_ends_an_answer_before_it(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        events = await conversation.ask("x", stop=["AAAA"], max_output_tokens=50, **ENDLESS)
        assert (events[-1].type, said(events)) == ("response.completed", "")


async def test_an_unstored_response_is_known_to_its_connection_only(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        first = await conversation.ask("x", store=False, max_output_tokens=2, **ENDLESS)
        previous = first[-1].response.id
        second = await conversation.ask("y", store=False, previous_response_id=previous, max_output_tokens=2, **ENDLESS)
        assert said(second) == "AA"
    async with shared_server.connect() as conversation:
        [error] = await conversation.ask("y", previous_response_id=previous)
        assert error.error.code == "previous_response_not_found"


async def test_truncation_auto_drops_the_oldest_turns_and_disabled_is_an_error(shared_server: Gateway) -> None:
    history = [{"role": role, "content": f"{n} " + "x" * 60} for n in range(8) for role in ("user", "assistant")]
    items = [*history, {"role": "user", "content": "now"}]
    async with shared_server.connect() as conversation:
        await conversation.send({"type": "response.create", "input": items, "truncation": "disabled"})
        [error] = await conversation.events()
        assert error.error.code == "context_length_exceeded"
        await conversation.send(
            {"type": "response.create", "input": items, "truncation": "auto", "max_output_tokens": 2, **ENDLESS}
        )
        events = await conversation.events()
        assert 0 < usage(events)[0] <= 256
        response = events[-1].response.to_dict()
        kept = shared_server.get(f"/v1/responses/{response['id']}/input_items?limit=100").json()["data"]
        users = sum(item["role"] == "user" for item in kept)
        assert response["samovar"]["prompt_turns"] == users < 9


async def test_an_answer_outlives_its_engine(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        await conversation.ask("x", max_output_tokens=1, **ENDLESS)
        await conversation.send({"type": "response.create", "input": "x", "max_output_tokens": 400, **ENDLESS})
        text = ""
        async for event in conversation.stream():
            if event.type == "response.output_text.delta":
                if not text:
                    shared_server.kill_engines()
                text += event.delta
            elif event.type == "response.incomplete":
                break
        assert text == "A" * 400


async def test_a_request_whose_engines_die_twice_fails_and_the_next_is_answered(tiny_server: Gateway) -> None:
    async def kill_all() -> None:
        while True:
            tiny_server.kill_engines()
            await asyncio.sleep(0.01)

    async with tiny_server.connect() as conversation:
        await conversation.ask("x", max_output_tokens=1, **ENDLESS)
        [engine] = tiny_server.engines()
        engine.suspend()  # or the request would end before the engine is killed
        await conversation.send({"type": "response.create", "input": "x", "max_output_tokens": 400, **ENDLESS})
        async for event in conversation.stream():
            if event.type == "response.content_part.added":
                killer = asyncio.create_task(kill_all())
            elif event.type in ("response.failed", "response.incomplete"):
                break
        killer.cancel()
        assert event.response.error is not None
        assert event.response.error.code == "engine_unavailable"
        assert said(await conversation.ask("x", max_output_tokens=2, **ENDLESS)) == "AA"


@pytest.mark.slow
async def test_a_user_whose_requests_crash_engines_is_rejected_for_a_while_and_others_are_not(
    tiny_server: Gateway,
) -> None:
    async with tiny_server.connect() as bad, tiny_server.connect() as good:
        for _ in range(2):
            killed = 0.0
            await bad.send({"type": "response.create", "input": "x", "max_output_tokens": 450, **ENDLESS})
            async for event in bad.stream():
                if (
                    event.type == "response.output_text.delta" and time.monotonic() > killed + 0.2
                ):  # from another engine
                    killed = time.monotonic()
                    tiny_server.kill_engines()
                elif event.type in ("response.failed", "response.incomplete"):
                    break
            assert event.type == "response.failed"
        [refusal] = await bad.ask("x")
        assert refusal.error.code == "engine_unavailable"
        assert 590 < refusal.to_dict()["error"]["retry_after"] <= 600
        assert said(await good.ask("x", max_output_tokens=2, **ENDLESS)) == "AA"
    assert 'code="engine_unavailable",route="responses",status="rejected"} 1.0' in tiny_server.get("/metrics").text
    assert "user blocked" in tiny_server.log()


async def test_waiting_requests_get_their_position_and_a_full_queue_rejects(tmp_path: Path, tiny_model: Path) -> None:
    server = Gateway(tmp_path, model=tiny_model, context=512, engines=1, queue_limit=1)
    with server:
        async with server.connect() as conversation:
            await conversation.ask("x", max_output_tokens=1, **ENDLESS)
            [engine] = server.engines()
            engine.suspend()
            most = int(server.metric("samovar_limit", name="running"))
            connections = [server.connect() for _ in range(most + 2)]
            clients = [await connection.__aenter__() for connection in connections]
            kinds = await asyncio.gather(*(first_sign(client) for client in clients))
            assert sorted(kinds) == ["error", *["response.content_part.added"] * most, "response.queued"]
            engine.resume()
            waiting = clients[kinds.index("response.queued")]
            assert (await waiting.events())[-1].type == "response.incomplete"
            for connection in connections:
                await connection.__aexit__(None, None, None)


async def first_sign(client: Any) -> str:
    """Return the type of the first event that shows whether a request is placed, queued or rejected."""
    await client.send({"type": "response.create", "input": "x", "max_output_tokens": 8, **ENDLESS})
    async for event in client.stream():
        if event.type == "response.queued":
            assert event.to_dict()["queue_position"] == 1
            return "response.queued"
        if event.type == "error":
            assert event.error.code == "queue_full"
            return "error"
        if event.type == "response.content_part.added":
            return "response.content_part.added"
    raise AssertionError


def test_health_models_and_metrics_are_served(tiny_server: Gateway) -> None:
    assert tiny_server.get("/healthz").json() == {"status": "alive"}
    assert tiny_server.get("/readyz").json() == {"status": "ready"}
    [model] = tiny_server.get("/v1/models").json()["data"]
    assert (model["id"], model["loaded"], model["context_length"]) == ("tiny", False, 512)
    metrics = tiny_server.get("/metrics").text
    assert 'samovar_engine_state{engine="0",state="stopped"} 1.0' in metrics
    assert 'samovar_limit{name="queue_limit"} 64.0' in metrics


def test_foreign_hosts_and_origins_are_rejected(shared_server: Gateway) -> None:
    assert shared_server.get("/v1/models", host="evil.example").status_code == 403
    assert shared_server.get("/v1/models", origin="http://evil.example").status_code == 403
    assert shared_server.get("/v1/models", origin=shared_server.url).status_code == 200


async def test_over_16_mib_the_socket_closes_with_the_rfcs_code(shared_server: Gateway) -> None:
    async with connect(shared_server.url.replace("http", "ws") + "/v1/responses", max_size=None) as socket:
        with pytest.raises(ConnectionClosedError) as closed:
            await socket.send("x" * (17 << 20))
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
