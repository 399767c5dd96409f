"""The middleware over the network: limits, hosts, origins, request ids and incomplete requests."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.transport.trusted_hosts import TrustedHosts
from tests.support.commands import keys
from tests.support.running import Gateway

ENDLESS = {"logit_bias": {"65": 100}, "temperature": 0}


def socket_url(gateway: Gateway) -> str:
    return gateway.url.replace("http", "ws", 1) + "/v1/responses"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_too_many_messages_are_rejected_and_the_connection_stays_open(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path, model=tiny_model, context=512, messages_per_minute=3) as gateway:
        async with gateway.connect() as conversation:
            codes = []
            for message in ("{", "{", '{"type": "response.cancel", "response_id": "x"}', "{", "{"):
                await conversation.send(message)
                codes += [error.error.code for error in await conversation.events()]
            assert codes == ["invalid_json"] * 2 + ["invalid_request"] + ["rate_limit_exceeded"] * 2
        answers = [gateway.get("/v1/models") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert int(answers[-1].headers["retry-after"]) > 0


async def test_too_many_connections_of_one_address_or_key_are_rejected_with_429(
    tmp_path: Path, tiny_model: Path
) -> None:
    key = keys(tmp_path, "add", "anna")
    limits = {"connections_per_user": 2, "connections_per_address": 3}
    other = keys(tmp_path, "add", "bert")
    with Gateway(tmp_path, model=tiny_model, context=512, **limits) as gateway:
        sockets = [await connect(socket_url(gateway), additional_headers=bearer(key)) for _ in range(2)]
        for wrong, right in ((key, other), (other, None)):
            with pytest.raises(InvalidStatus) as refused:
                await connect(socket_url(gateway), additional_headers=bearer(wrong))
            response = refused.value.response
            assert response.status_code == 429
            assert b"websocket_connection_limit_reached" in response.body
            assert int(response.headers["retry-after"]) > 0
            if right:
                sockets.append(await connect(socket_url(gateway), additional_headers=bearer(right)))
        assert gateway.get("/v1/models", **bearer(other)).status_code == 429
        for socket in sockets:
            await socket.close()
        assert gateway.get("/v1/models", **bearer(other)).status_code == 200


def test_foreign_hosts_and_origins_are_rejected_on_every_route(shared_server: Gateway) -> None:
    for path in ("/", "/healthz", "/metrics", "/v1/models", "/static/app.js", "/nowhere"):
        assert shared_server.get(path, host="evil.example").status_code == 403
        assert shared_server.get(path, origin="http://evil.example").status_code == 403
        assert shared_server.get(path, origin="http://[").status_code == 403
        assert shared_server.get(path, origin=shared_server.url).status_code != 403


async def test_a_foreign_page_cannot_open_a_websocket(shared_server: Gateway) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(socket_url(shared_server), additional_headers={"Origin": "https://evil.example"})
    assert refused.value.response.status_code == 403


def test_an_allowed_origin_may_call_and_read_the_response(tmp_path: Path, tiny_model: Path) -> None:
    origin = "https://chat.example"
    with Gateway(tmp_path, model=tiny_model, context=512, allowed_origins=origin) as gateway:
        answer = gateway.get("/v1/models", origin=origin)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        refused = gateway.get("/v1/models", origin=origin, host="evil.example")
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (403, origin)
        foreign = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        refused = httpx.options(gateway.url + "/v1/responses", headers=foreign)
        assert refused.status_code == 403
        headers = {"origin": origin, "access-control-request-method": "POST"}
        headers["access-control-request-headers"] = "authorization,content-type"
        assert httpx.options(gateway.url + "/v1/responses", headers=headers).status_code == 200


def test_a_body_without_a_json_content_type_is_rejected(shared_server: Gateway) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        headers = {"content-type": kind} if kind else {}
        answer = httpx.post(shared_server.url + "/v1/responses", content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "invalid_request")


def test_every_response_has_a_request_id_and_security_headers(shared_server: Gateway) -> None:
    answers = [shared_server.get(path) for path in ("/", "/static/app.js", "/v1/models", "/nowhere")]
    answers.append(shared_server.get("/", host="evil.example"))
    for answer in answers:
        assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


async def test_a_websocket_upgrade_has_a_request_id(shared_server: Gateway) -> None:
    async with connect(socket_url(shared_server)) as socket:
        assert socket.response is not None
        assert socket.response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("host", ["", "a b", "[", "[::1", "evil.example", "127.0.0.1.evil.example", "localhost:x"])
def test_an_unknown_host_is_rejected_without_an_internal_error(host: str) -> None:
    async def ask() -> int:
        app = TrustedHosts(Starlette(), hosts=["localhost", "127.0.0.1"], origins=[])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as http:
            return (await http.get("/", headers={"host": host})).status_code

    assert asyncio.run(ask()) == 403


@pytest.mark.slow
async def test_a_connection_with_an_incomplete_request_is_closed(shared_server: Gateway) -> None:
    port = int(shared_server.url.rpartition(":")[2])
    whole = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    async def until_hung_up_on(said: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        async with asyncio.timeout(40):
            await reader.read()
        writer.close()

    async with connect(socket_url(shared_server)) as socket:
        await asyncio.gather(*map(until_hung_up_on, (b"", whole[:20], whole + whole[:20])))
        await socket.send("{")
        assert "invalid_json" in str(await socket.recv())
