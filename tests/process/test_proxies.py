"""Who a request comes from: a trusted proxy says so, and nobody else."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gateway.transport.proxies import Proxies
from tests.support.running import Gateway


def seen_by_app(client: str, headers: dict[str, str], trusted: list[str]) -> list[str]:
    """Address, scheme and host that the app sees of a client behind the given peer."""

    async def app(request: Request) -> PlainTextResponse:
        assert request.client is not None
        return PlainTextResponse(f"{request.client.host} {request.url.scheme} {request.headers['host']}")

    async def ask() -> str:
        inner = Starlette(routes=[Route("/", app)])
        transport = httpx.ASGITransport(app=Proxies(inner, trusted=trusted), client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            return (await http.get("/", headers=headers)).text

    return asyncio.run(ask()).split()


FORWARDED = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https", "x-forwarded-host": "chat.example"}


def test_the_client_address_is_taken_from_a_trusted_proxy() -> None:
    assert seen_by_app("10.1.2.3", FORWARDED, ["10.0.0.0/8"]) == ["203.0.113.9", "https", "chat.example"]


def test_nobody_else_does() -> None:
    assert seen_by_app("10.1.2.3", FORWARDED, ["192.0.2.1"]) == ["10.1.2.3", "http", "gateway"]
    assert seen_by_app("", FORWARDED, ["10.0.0.0/8"])[-2:] == ["http", "gateway"]


def test_what_a_client_puts_before_a_proxys_own_word_counts_for_nothing() -> None:
    headers = {**FORWARDED, "x-forwarded-for": "127.0.0.1, 203.0.113.9"}
    assert seen_by_app("10.1.2.3", headers, ["10.0.0.0/8"])[0] == "203.0.113.9"


def test_an_ipv4_mapped_peer_is_the_same_as_its_ipv4_address() -> None:
    for peer in ("10.1.2.3", "::ffff:10.1.2.3", "::ffff:a01:203"):
        for trusted in ("10.0.0.0/8", "10.1.2.3", "::ffff:10.1.2.3", "::ffff:10.0.0.0/104", "10.1.2.9/8"):
            assert seen_by_app(peer, FORWARDED, [trusted])[0] == "203.0.113.9"
        assert seen_by_app(peer, FORWARDED, ["10.2.0.0/16", "::/8"])[0] == "10.1.2.3"


def test_ipv4_mapped_addresses_of_clients_and_proxies_are_reported_as_ipv4() -> None:
    headers = {**FORWARDED, "x-forwarded-for": "::ffff:203.0.113.9, ::ffff:10.9.9.9"}
    assert seen_by_app("::ffff:10.1.2.3", headers, ["10.0.0.0/8"])[0] == "203.0.113.9"
    assert seen_by_app("2001:db8::1", FORWARDED, ["10.0.0.0/8"])[0] == "2001:db8::1"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_a_dual_stack_gateway_counts_a_proxys_clients_apart(tmp_path: Path, tiny_model: Path) -> None:
    trusted = {"trusted_proxies": "127.0.0.1", "connections_per_address": 1, "allow_anonymous": "true"}
    with Gateway(tmp_path, model=tiny_model, host="::", **trusted) as gateway:
        url = f"http://127.0.0.1:{gateway.url.rpartition(':')[2]}/v1/models"
        ended = threading.Event()

        def slow_body() -> Iterator[bytes]:  # holds its place among the requests of 203.0.113.1
            yield b"{"
            ended.wait(20)

        def hold() -> None:
            headers = {"x-forwarded-for": "203.0.113.1", "content-type": "application/json"}
            httpx.post(url.replace("models", "responses"), headers=headers, content=slow_body())

        holder = threading.Thread(target=hold)
        holder.start()
        try:
            deadline = time.monotonic() + 10
            while httpx.get(url, headers={"x-forwarded-for": "203.0.113.1"}).status_code == 200:
                assert time.monotonic() < deadline
            assert httpx.get(url, headers={"x-forwarded-for": "203.0.113.2"}).status_code == 200
        finally:
            ended.set()
            holder.join()
