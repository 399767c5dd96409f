"""Requests that stopped the gateway for everybody: each is answered, and meanwhile the event loop goes on.

The one place where tests assert a time: the loop stands still for at most 250 ms, or ten times as long as when it is
idle on the same machine in the same minute.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.support.running import Gateway
from tests.support.tiny_model import CHAT_TEMPLATE, write_tiny_model
from tests.support.watchdog import Watchdog, bound, idle

pytestmark = [pytest.mark.slow, pytest.mark.serial]

MEBIBYTE = (1 << 20) - 300
MESSAGES = 50
SMALL_REQUESTS = 25
REFUSED = {"input": "x" * MEBIBYTE, "n": 2}
TEMPLATE = (
    "{% if messages | length == 7 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
)
"""Hangs on seven messages, which is not seen when the file is inspected; and knows tools."""


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def exponential() -> dict[str, Any]:
    """Six levels, each with six ways to the next one: 1.2 kB that describe 46 656 strings."""
    levels = {f"a{i}": {"anyOf": [{"allOf": [{"$ref": f"#/$defs/a{i + 1}"}]} for _ in range(6)]} for i in range(6)}
    return {"$ref": "#/$defs/a0", "$defs": {**levels, "a6": {"type": "string"}}}


def turns(count: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(count)]


def schema_request(schema: Any) -> dict[str, Any]:
    return {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}


ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "spaces between letters": ("/v1/responses", {"input": "a" + " " * MEBIBYTE + "b"}),
    "spaces": ("/v1/responses", {"input": " " * MEBIBYTE}),
    "spaces that are counted": ("/v1/responses/input_tokens", {"input": " " * MEBIBYTE, "truncation": "auto"}),
    "a word of 40 000 letters": ("/v1/responses", {"input": "x" * 40_000}),
    "a word of a million letters": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x" * MEBIBYTE}]},
    ),
    "a template that hangs": ("/v1/responses", {"input": turns(7)}),
    "a deep call": (
        "/v1/responses",
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": nested(700)}, *turns(1)]},
    ),
    "a deep tool": (
        "/v1/responses",
        {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": json.loads(nested(200))}]},
    ),
    "an exponential schema": ("/v1/responses", schema_request(exponential())),
    "many items": ("/v1/responses", {"input": turns(1001), "truncation": "auto"}),
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The tiny model with a vocabulary whose text is split by std::regex, and a template that hangs."""
    folder = tmp_path_factory.mktemp("attacked")
    model = write_tiny_model(folder / "tiny.gguf", pre="deepseek-llm", template=TEMPLATE)
    with Gateway(folder / "state", model=model, context=512) as gateway:
        gateway.post("/v1/responses", {"input": "x", "max_output_tokens": 1}).raise_for_status()
        yield gateway


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_answered_and_blocks_no_other_client(gateway: Gateway, name: str) -> None:
    path, body = ATTACKS[name]
    most = bound(idle(gateway))
    with Watchdog(gateway) as watchdog:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=120) as client:
            answers = await asyncio.gather(*(client.post(path, json=body) for _ in range(2)))
    for answer in answers:
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["code"] in ("invalid_request", "context_length_exceeded")
    assert watchdog.longest < most
    gateway.post("/v1/responses", {"input": "x", "max_output_tokens": 1}).raise_for_status()


async def test_fifty_attacks_at_once_block_no_other_client(gateway: Gateway) -> None:
    most = bound(idle(gateway))
    with Watchdog(gateway) as watchdog:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=300) as client:
            names = ("spaces between letters", "spaces that are counted", "many items", "a word of a million letters")
            bodies = [ATTACKS[names[i % len(names)]] for i in range(50)]
            attacks = [asyncio.create_task(client.post(path, json=body)) for path, body in bodies]
            for _ in range(5):  # somebody else's short requests are answered meanwhile
                short = {"input": "x", "max_output_tokens": 1}
                (await client.post("/v1/responses", json=short)).raise_for_status()
            for attack in attacks:
                attack.cancel()
            await asyncio.gather(*attacks, return_exceptions=True)
    assert watchdog.longest < most


async def large_messages(gateway: Gateway) -> AsyncIterator[list[Awaitable[None]]]:
    """Yield MESSAGES requests over as many WebSockets: decoded as a whole, then refused, without any tokenizing."""
    async with AsyncExitStack() as stack:
        address = gateway.url.replace("http", "ws", 1) + "/v1/responses"
        opened = [await stack.enter_async_context(connect(address, compression=None)) for _ in range(MESSAGES)]

        async def send(socket: ClientConnection) -> None:
            await socket.send(json.dumps({"type": "response.create", **REFUSED}))
            assert json.loads(await socket.recv())["error"]["code"] == "unsupported_parameter"

        yield [send(socket) for socket in opened]


async def large_bodies(gateway: Gateway) -> AsyncIterator[list[Awaitable[None]]]:
    """Yield the same requests over HTTP."""
    limits = httpx.Limits(max_connections=MESSAGES)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=120, limits=limits) as client:

        async def post() -> None:
            response = await client.post("/v1/responses", json=REFUSED)
            assert response.json()["error"]["code"] == "unsupported_parameter"

        yield [post() for _ in range(MESSAGES)]


@pytest.mark.parametrize("large", [large_messages, large_bodies])
async def test_small_requests_are_answered_before_many_large_ones_are_read(
    gateway: Gateway, large: Callable[[Gateway], AsyncIterator[list[Awaitable[None]]]]
) -> None:
    async with (
        asynccontextmanager(large)(gateway) as requests,
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as client,
    ):
        await client.get("/healthz")
        tasks = [asyncio.ensure_future(request) for request in requests]
        for _ in range(SMALL_REQUESTS):
            await client.get("/healthz")
        answered = sum(task.done() for task in tasks)
        await asyncio.gather(*tasks)
    assert answered < MESSAGES / 4


async def test_a_lane_goes_on_after_a_request_that_hangs(gateway: Gateway) -> None:
    async with connect(gateway.url.replace("http", "ws", 1) + "/v1/responses") as socket:
        for request in ({"input": turns(7)}, {"input": "x"}):
            await socket.send(json.dumps({"type": "response.create", "max_output_tokens": 1, **request}))
        first = json.loads(await socket.recv())
        assert (first["type"], first["error"]["code"]) == ("error", "invalid_request")
        assert json.loads(await socket.recv())["type"] == "response.created"


def test_a_request_that_is_cancelled_while_its_prompt_is_read_leaves_nothing_behind(gateway: Gateway) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/responses", json={"input": turns(7)}, timeout=0.2)
    gateway.post("/v1/responses", {"input": "x", "max_output_tokens": 1}).raise_for_status()


def test_the_log_reports_dead_workers_without_contents(gateway: Gateway) -> None:
    log = gateway.log()
    assert "prompt worker died" in log
    assert "Traceback" not in log
    assert "xxxx" not in log
    assert gateway.metric("samovar_prompt_worker_restarts_total") > 0
