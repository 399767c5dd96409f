"""API keys over the network: what requires one, whose data it opens, and what its revocation ends."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.chatting import ENGLISH, Terminal
from tests.support.commands import keys
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway, said

ENDLESS = {"logit_bias": {"65": 100}, "temperature": 0}


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.05)


def socket_url(gateway: Gateway) -> str:
    return gateway.url.replace("http", "ws", 1) + "/v1/responses"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def closed(tmp_path: Path, tiny_model: Path) -> Iterator[tuple[Gateway, str]]:
    """A gateway that requires keys, and the key of user anna."""
    with open_closed(tmp_path, tiny_model) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_closed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Gateway, str]]:
    """The same for all tests that neither stop it nor count its totals."""
    with open_closed(tmp_path_factory.mktemp("closed"), tiny_model) as opened:
        yield opened


@contextmanager
def open_closed(state: Path, model: Path) -> Iterator[tuple[Gateway, str]]:
    """Run a gateway that requires keys, and yield it with the key of user anna."""
    key = keys(state, "add", "anna")
    with Gateway(state, model=model, context=512) as gateway:
        yield gateway, key


async def test_once_a_key_exists_every_request_needs_one_even_on_loopback(shared_closed: tuple[Gateway, str]) -> None:
    gateway, key = shared_closed
    refused = gateway.get("/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert gateway.get("/v1/models", **bearer(key)).status_code == 200
    assert gateway.get("/v1/models", **bearer(key[:-1])).status_code == 401
    for path in ("/healthz", "/readyz", "/metrics", "/", "/static/app.js"):
        assert gateway.get(path).status_code == 200
    with pytest.raises(InvalidStatus) as stranger:
        await connect(socket_url(gateway))
    assert stranger.value.response.status_code == 401
    assert b"invalid_api_key" in stranger.value.response.body
    async with gateway.connect(key) as conversation:
        assert (await conversation.ask("x", max_output_tokens=2, **ENDLESS))[-1].type == "response.incomplete"


async def test_a_browser_offers_its_key_as_a_subprotocol_and_the_other_one_is_accepted(
    shared_closed: tuple[Gateway, str],
) -> None:
    gateway, key = shared_closed
    offered: list[Any] = ["samovar", f"openai-insecure-api-key.{key}"]
    async with connect(socket_url(gateway), subprotocols=offered) as socket:
        assert socket.subprotocol == "samovar"
    async with connect(socket_url(gateway), additional_headers=bearer(key)) as socket:
        assert socket.subprotocol is None


async def test_revoking_a_key_ends_its_connections_and_responses(shared_closed: tuple[Gateway, str]) -> None:
    gateway, other = shared_closed
    key = keys(gateway.state, "add", "leaves")
    async with gateway.connect(key) as conversation, gateway.connect(other) as bystander:
        await conversation.send({"type": "response.create", "input": "x", "max_output_tokens": 400, **ENDLESS})
        keys(gateway.state, "revoke", "leaves")
        with pytest.raises(ConnectionClosed) as ended:
            async with asyncio.timeout(10):
                while True:
                    await conversation.connection._connection.recv()
        assert ended.value.rcvd is not None
        assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1008, "invalid_api_key")
        assert (await bystander.ask("x", max_output_tokens=2, **ENDLESS))[-1].type == "response.incomplete"
    assert gateway.get("/v1/models", **bearer(key)).status_code == 401


async def test_revoking_a_key_ends_its_responses_in_the_background(shared_closed: tuple[Gateway, str]) -> None:
    def cancelled() -> float:
        return gateway.metric("samovar_requests_total", route="responses", status="cancelled")

    gateway, _ = shared_closed
    key = keys(gateway.state, "add", "walks-away")
    gateway.post("/v1/responses", {"input": "x", "max_output_tokens": 1}, **bearer(key))  # loads an engine
    engines, before = gateway.engines(), cancelled()
    assert engines
    for engine in engines:
        engine.suspend()  # or the response would be complete before the key is revoked
    started = gateway.post("/v1/responses", {"input": "x", "background": True, **ENDLESS}, **bearer(key))
    assert started.status_code == 200
    keys(gateway.state, "revoke", "walks-away")
    await eventually(lambda: gateway.get("/v1/models", **bearer(key)).status_code == 401)
    for engine in engines:
        engine.resume()
    await eventually(lambda: cancelled() > before)


async def test_the_first_key_ends_connections_without_one(tiny_server: Gateway) -> None:
    async with connect(socket_url(tiny_server)) as socket:
        keys(tiny_server.state, "add", "anna")
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(10):
                await socket.recv()


async def test_another_users_response_looks_like_one_that_does_not_exist(shared_closed: tuple[Gateway, str]) -> None:
    gateway, key = shared_closed
    other = keys(gateway.state, "add", "bert")
    async with gateway.connect(key) as conversation:
        first = await conversation.ask("x", max_output_tokens=2, **ENDLESS)
    async with gateway.connect(other) as conversation:
        [error] = await conversation.ask("y", previous_response_id=first[-1].response.id)
    assert error.error.code == "previous_response_not_found"


async def test_an_admin_key_cannot_read_cancel_continue_or_delete_responses_of_others(
    shared_closed: tuple[Gateway, str],
) -> None:
    """Another user's response looks like one that never existed, and the monitor pages contain nothing of it."""
    gateway, key = shared_closed
    admin = keys(gateway.state, "add", "root", "--admin")
    async with gateway.connect(key) as conversation:
        first = await conversation.ask("a secret question", max_output_tokens=2, **ENDLESS)
    theirs, none = first[-1].response.id, f"resp_{'0' * 32}"

    def found(method: str, path: str, id_: str) -> tuple[int, str]:
        url = f"{gateway.url}/v1/responses/{id_}{path}"
        answer = httpx.request(method, url, headers=bearer(admin), timeout=10)
        return answer.status_code, answer.text.replace(id_, "ID")

    for method, path in (
        ("GET", ""),
        ("GET", "?stream=true"),
        ("GET", "/input_items"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ):
        assert found(method, path, theirs) == found(method, path, none)
        assert found(method, path, theirs)[0] == 404
    async with gateway.connect(admin) as conversation:
        [error] = await conversation.ask("y", previous_response_id=theirs)
        assert error.error.code == "previous_response_not_found"
        for kind in ("response.resume", "response.cancel"):
            await conversation.send({"type": kind, "response_id": theirs})
            [error] = await conversation.events()
            assert (error.type, error.error.param) == ("error", "response_id")
    for path in ("/monitor", "/monitor/metrics", "/v1/models"):
        page = gateway.get(path, **bearer(admin))
        assert page.status_code == 200
        assert not any(word in page.text for word in ("secret", theirs, "anna"))
    kept = gateway.get(f"/v1/responses/{theirs}", **bearer(key))
    assert (kept.status_code, kept.json()["id"]) == (200, theirs)


async def test_use_is_counted_for_the_operator(closed: tuple[Gateway, str]) -> None:
    gateway, key = closed
    async with gateway.connect(key) as conversation:
        events = await conversation.ask("x", max_output_tokens=2, **ENDLESS)
    assert gateway.stop() == 0
    listed = keys(gateway.state, "list", "--json")
    used = events[-1].response.usage
    assert f'"tokens_today": {used.total_tokens - used.input_tokens_details.cached_tokens}' in listed
    assert '"requests": 1' in listed


async def test_a_key_without_tokens_left_is_rejected_and_the_connection_stays_open(
    shared_closed: tuple[Gateway, str],
) -> None:
    gateway, _ = shared_closed
    key = keys(gateway.state, "add", "frugal", "--tokens-per-minute", "60")
    async with gateway.connect(key) as conversation:
        await conversation.ask("x" * 100, max_output_tokens=2, **ENDLESS)
        for _ in range(2):
            [error] = await conversation.ask("x")
            assert error.error.code == "rate_limit_exceeded"
            assert 0 < error.to_dict()["error"]["retry_after"] < 180


def test_serving_beyond_loopback_requires_a_key(tmp_path: Path, tiny_model: Path) -> None:
    command = [*SAMOVAR, "serve", "--host=0.0.0.0", "--port=0", f"--state-dir={tmp_path}", f"--model={tiny_model}"]
    refused = subprocess.run(command, capture_output=True, text=True, env=CHILD_ENVIRONMENT, check=False, timeout=30)
    assert refused.returncode == 2
    assert "samovar keys add" in refused.stderr
    key = keys(tmp_path, "add", "anna")
    with Gateway(tmp_path, model=tiny_model, context=512, host="0.0.0.0") as gateway:  # noqa: S104
        assert gateway.get("/v1/models", **bearer(key)).status_code == 200
        assert gateway.get("/v1/models", host="192.0.2.1:8000", **bearer(key)).status_code == 200
        assert gateway.get("/v1/models", host="evil.example", **bearer(key)).status_code == 403


def test_the_monitor_page_requires_an_admin_key(shared_closed: tuple[Gateway, str]) -> None:
    gateway, user = shared_closed
    admin = keys(gateway.state, "add", "chief", "--admin")
    refused = gateway.get("/monitor")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    assert gateway.get("/monitor", **bearer(user)).status_code == 401
    assert gateway.get("/monitor", **bearer(admin)).status_code != 401
    basic = base64.b64encode(f"me:{admin}".encode()).decode()
    assert gateway.get("/monitor", authorization=f"Basic {basic}").status_code != 401
    assert gateway.get("/monitor", authorization="Basic !").status_code == 401
    assert gateway.get("/v1/models", authorization=f"Basic {basic}").status_code == 401


async def test_the_official_client_reports_a_wrong_key(shared_closed: tuple[Gateway, str]) -> None:
    gateway, _ = shared_closed
    async with AsyncOpenAI(api_key="smv_wrong", base_url=gateway.url + "/v1", max_retries=0) as client:
        with pytest.raises(Exception, match="this API key is unknown") as wrong:
            await client.models.list()
    assert type(wrong.value).__name__ == "AuthenticationError"


async def test_contents_and_keys_are_never_logged(shared_closed: tuple[Gateway, str]) -> None:
    gateway, key = shared_closed
    async with gateway.connect(key) as conversation:
        await conversation.ask("a secret question", max_output_tokens=2, **ENDLESS)
        await conversation.send('{"type": "a secret type"')
        await conversation.events()
    last = gateway.get("/v1/models?key=secret", **bearer(key)).headers["x-request-id"]
    await eventually(lambda: last in gateway.log())
    log = gateway.log()
    assert '"path": "/v1/models"' in log
    assert re.search('"tenant": "[0-9a-f]{8}"', log)
    assert '"request_id": "req_' in log
    assert "secret" not in log
    assert key not in log


async def test_metrics_count_rejections_and_sessions_and_contain_no_name_id_or_content(
    closed: tuple[Gateway, str],
) -> None:
    gateway, key = closed
    gateway.get("/v1/models")
    gateway.get("/v1/responses/../secret")
    gateway.get("/v1/models", host="evil.example")
    async with gateway.connect(key) as conversation:
        first = await conversation.ask("a secret question", max_output_tokens=8, **ENDLESS)
        await conversation.ask("y", previous_response_id=first[-1].response.id, max_output_tokens=2, **ENDLESS)
        await conversation.ask("z", metadata={"secret": "secret"}, max_output_tokens=2, **ENDLESS)
        await conversation.ask("z", model="secret")
        gateway.get(f"/v1/responses/{first[-1].response.id}", **bearer(key))
        metrics = gateway.get("/metrics").text
    for line in (
        'samovar_requests_total{code="invalid_api_key",route="models",status="rejected"} 1.0',
        'samovar_requests_total{code="invalid_request",route="models",status="rejected"} 1.0',
        "samovar_sessions_active 2.0",
        'samovar_limit{name="user_concurrency"} 2.0',
    ):
        assert line in metrics
    [tenant] = re.findall('"tenant": "([0-9a-f]{8})"', gateway.log())[:1]
    answered = said(first)
    assert answered == "A" * 8
    for word in ("secret", "anna", key, first[-1].response.id, "resp_", tenant, answered):
        assert word not in metrics


def test_the_terminal_chat_asks_for_a_required_key(shared_closed: tuple[Gateway, str]) -> None:
    gateway, key = shared_closed
    chat = [*SAMOVAR, "chat", f"--port={gateway.url.rpartition(':')[2]}"]
    with Terminal(chat) as terminal:
        terminal.see("an API key is needed")
        terminal.see("API key: ")
        terminal.type("wrong\n")
        terminal.see("this API key is unknown")
        terminal.see("API key: ")
        terminal.type(f"{key}\n")
        seen = terminal.see("tiny")
        assert key not in seen
        assert terminal.leave() == 0
    piped = subprocess.run(
        chat,
        input="/stats\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**ENGLISH, "SAMOVAR_API_KEY": key},
    )
    assert (piped.returncode, piped.stderr) == (0, "")
    wrong = subprocess.run(chat, input="x\n", capture_output=True, text=True, timeout=30, check=False, env=ENGLISH)
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
