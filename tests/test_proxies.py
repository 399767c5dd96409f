"""Who a request comes from: a trusted proxy says so, and nobody else."""

from __future__ import annotations

import asyncio

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gateway.transport.proxies import Proxies


def told(client: str, headers: dict[str, str], trusted: list[str]) -> list[str]:
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


def test_a_trusted_proxy_says_who_the_client_is() -> None:
    assert told("10.1.2.3", FORWARDED, ["10.0.0.0/8"]) == ["203.0.113.9", "https", "chat.example"]


def test_nobody_else_does() -> None:
    assert told("10.1.2.3", FORWARDED, ["192.0.2.1"]) == ["10.1.2.3", "http", "gateway"]
    assert told("", FORWARDED, ["10.0.0.0/8"])[-2:] == ["http", "gateway"]


def test_what_a_client_puts_before_a_proxys_own_word_counts_for_nothing() -> None:
    headers = {**FORWARDED, "x-forwarded-for": "127.0.0.1, 203.0.113.9"}
    assert told("10.1.2.3", headers, ["10.0.0.0/8"])[0] == "203.0.113.9"
