"""Which hosts and origins are served, and which route the spelling of a path means."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.config.setting_types import is_loopback
from gateway.config.settings import SettingsError, load
from gateway.transport.origins import Origins, is_own
from gateway.transport.paths import Options, Paths
from gateway.transport.proxies import Proxies
from gateway.transport.trusted_hosts import TrustedHosts

HOSTS = ["localhost", "127.0.0.1", "chat.example.org", "*.example.net", "https://front.example.com:8443"]


ODD = [
    "evil.example://localhost", "http://localhost", "localhost/evil", "evil@localhost", "localhost:8000:1",
    "localhost:x", "[localhost]", "[::1", "localhost?", "localhost#", "localhost\\evil",
]  # fmt: skip
"""Values of `Host` that are no name and port, though parts of them are served."""


async def respond(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.url.path)


INNER = Starlette(routes=[Route("/", respond, methods=["GET", "POST"])])


def ask(app: ASGIApp, path: str = "/", method: str = "GET", **headers: str) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=("10.1.2.3", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
            return await http.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return asyncio.run(call())


def served(host: str, origin: str | None = None, *, exposed: bool = False, origins: list[str] | None = None) -> bool:
    app = TrustedHosts(INNER, hosts=HOSTS, origins=origins or [], exposed=exposed)
    return ask(app, host=host, **({} if origin is None else {"origin": origin})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost:8000", "LOCALHOST", "localhost.", "192.168.1.5:8000", "[::ffff:127.0.0.1]:8000", "[2001:db8::1]",
        "chat.example.org", "a.b.example.net:8000", "front.example.com",
    ],
)  # fmt: skip
def test_known_names_and_all_addresses_are_served(host: str) -> None:
    assert served(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "example.net", "chat.example.org.evil.example", "evil.local", "a b", *ODD]
)
def test_names_of_the_public_dns_are_not(host: str) -> None:
    assert not served(host)
    assert not served(host, exposed=True)


@pytest.mark.parametrize("host", ["host.docker.internal:8000", "host.containers.internal", "samovar:8000", "my_app-1"])
def test_private_names_are_served_to_programs_and_to_pages_only_beyond_loopback(host: str) -> None:
    assert served(host)
    assert not served(host, f"http://{host}")
    assert served(host, f"http://{host}", exposed=True)


def test_a_request_without_host_is_served_since_no_browser_sends_one() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    app = TrustedHosts(INNER, hosts=HOSTS, origins=[])
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 200


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("chat.example.org", "https://chat.example.org"),
        ("chat.example.org:443", "https://chat.example.org"),
        ("chat.example.org", "https://chat.example.org:443"),
        ("chat.example.org:80", "http://chat.example.org"),
        ("chat.example.org", "http://chat.example.org:8080"),  # nginx: proxy_set_header Host $host
        ("CHAT.example.org", "https://Chat.Example.Org"),
    ],
)
def test_the_page_of_the_same_host_may_call_whatever_default_ports_are_left_out(host: str, origin: str) -> None:
    assert is_own(origin, host, port=8000)


@pytest.mark.parametrize(
    ("host", "origin", "port"),
    [
        ("localhost:8000", "http://localhost:3000", 8000),
        ("localhost:8000", "http://localhost", 8000),
        ("chat.example.org", "http://chat.example.org:8080", 80),
        ("chat.example.org", "http://evil.example", 8000),
        ("chat.example.org", "chrome-extension://chat.example.org", 8000),
        ("chat.example.org", "null", 8000),
    ],
)
def test_a_page_of_another_port_or_scheme_is_foreign(host: str, origin: str, port: int) -> None:
    assert not is_own(origin, host, port=port)


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("*", "https://any.example"),
        ("*", "null"),
        ("null", "null"),
        ("chrome-extension://*", "chrome-extension://abcdef"),
        ("https://*.example.org", "https://a.b.example.org"),
        ("http://localhost:*", "http://localhost:3000"),
        ("https://chat.example:443/", "https://chat.example"),
        ("https://Chat.example", "https://chat.example:443"),
    ],
)
def test_an_allowed_origin_may_have_wildcards_and_default_ports(entry: str, origin: str) -> None:
    assert Origins([entry]).allow(origin)
    assert served("localhost:8000", origin, origins=[entry])


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("https://*.example.org", "https://example.org.evil.example"),
        ("https://*.example.org", "https://evil.example/.example.org"),
        ("https://chat.example", "http://chat.example"),
        ("https://chat.example", "https://chat.example:8443"),
        ("https://chat.example", "https://chatxexample"),
    ],
)
def test_a_wildcard_stands_for_names_only(entry: str, origin: str) -> None:
    assert not Origins([entry]).allow(origin)


def test_a_refusal_names_the_setting_and_its_value_and_a_page_can_read_it() -> None:
    app = TrustedHosts(INNER, hosts=HOSTS, origins=[])
    assert "--allowed-hosts evil.example)" in ask(app, host="evil.example:8000").json()["error"]["message"]
    page = {"origin": "https://evil.example", "access_control_request_method": "POST"}
    refused = ask(app, method="OPTIONS", **page)
    assert "--allowed-origins https://evil.example)" in refused.json()["error"]["message"]
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (403, "https://evil.example")


def test_an_origin_without_a_scheme_is_refused_at_start() -> None:
    with pytest.raises(SettingsError, match=r"allowed_origins: chat.example has no scheme; write https://chat.example"):
        load({"allowed_origins": "chat.example"})


@pytest.mark.parametrize(
    ("headers", "host"),
    [
        ({"x_forwarded_host": "evil, chat.example", "x_forwarded_port": "8443"}, "chat.example:8443"),
        ({"x_forwarded_host": "chat.example:9000", "x_forwarded_port": "8443"}, "chat.example:9000"),
        ({"x_forwarded_host": "chat.example", "x_forwarded_port": "443"}, "chat.example"),
        ({"x_forwarded_host": "[2001:db8::1]", "x_forwarded_port": "8443"}, "[2001:db8::1]:8443"),
        ({"x_forwarded_port": "8443; evil"}, "localhost:8000"),
    ],
)
def test_a_trusted_proxy_forwards_host_and_port(headers: dict[str, str], host: str) -> None:
    async def app(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.headers["host"])

    inner = Starlette(routes=[Route("/", app)])
    assert ask(Proxies(inner, trusted=["10.0.0.0/8"]), **headers).text == host
    assert ask(Proxies(inner, trusted=["192.0.2.1"]), **headers).text == "localhost:8000"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "::ffff:127.0.0.1"])
def test_loopback_is_recognized_in_every_form(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback("0.0.0.0")  # noqa: S104


ROUTES = [
    Route("/healthz", respond),
    Route("/v1/models", respond),
    Route("/v1/responses", respond, methods=["POST"]),
    Route("/v1/chat/completions", respond, methods=["POST"]),
]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1//models", "/v1/models"),
        ("//v1/models/", "/v1/models"),
        ("/models", "/v1/models"),
        ("/v1/v1/models", "/v1/models"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("/chat/completions/", "/v1/chat/completions"),
        ("/responses/resp_1/cancel", "/v1/responses/resp_1/cancel"),
        ("/health", "/healthz"),
        ("/", "/"),
        ("", "/"),
        ("/static/app.js", "/static/app.js"),
        ("/static/", "/static/"),
        ("/monitor/", "/monitor/"),
        ("/other/models", "/other/models"),
    ],
)
def test_a_path_means_one_route_in_all_spellings(path: str, route: str) -> None:
    assert Paths(INNER, routes=ROUTES).route(path) == route
    assert Paths(INNER, routes=ROUTES, root_path="/samovar").route(f"/samovar{path}") == route or not path


def test_a_prefix_may_be_removed_by_the_proxy_or_by_the_gateway() -> None:
    app = Paths(Starlette(routes=ROUTES), routes=ROUTES, root_path="/samovar")
    for path in ("/samovar/v1/models", "/v1/models", "/samovar/models"):
        assert ask(app, path).text == "/v1/models"
    assert ask(app, "/samovarv1/models").status_code == 404
    assert ask(app, "/samovar").headers["location"] == "/samovar/"


def test_a_path_with_control_characters_is_no_route() -> None:
    app = Paths(Starlette(routes=ROUTES), routes=ROUTES)
    for path in ("/v1/models%0a", "/models%0A", "/healthz%0d", "/v1/models%00", "/%0a/v1/models"):
        assert ask(app, path).status_code == 404, path


CURL = {"content_type": "application/x-www-form-urlencoded"}
PLAIN = {"content_type": "text/plain"}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/chat", CURL, 200),
        ("/api/chat", PLAIN, 200),
        ("/api/chat", {}, 200),
        ("/api/chat", {**PLAIN, "origin": "http://localhost:8000"}, 200),
        ("/api/chat", {**PLAIN, "sec_fetch_site": "same-origin"}, 200),
        ("/api/chat", {**PLAIN, "origin": "https://evil.example"}, 403),
        ("/api/chat", {**CURL, "origin": "http://localhost:3000", "sec_fetch_site": "same-site"}, 403),
        ("/api/chat", {**CURL, "origin": "null"}, 403),
        ("/api/chat", {**PLAIN, "sec_fetch_site": "cross-site"}, 415),
        ("/api/chat", {**CURL, "sec_fetch_site": "same-site"}, 415),
        ("/v1/responses", CURL, 415),
        ("/v1/chat/completions", {}, 415),
    ],
)
def test_only_ollamas_paths_take_bodies_of_any_type_and_from_no_foreign_page(
    path: str, headers: dict[str, str], status: int
) -> None:
    inner = Starlette(routes=[Route(path, respond, methods=["POST"])])
    app = TrustedHosts(inner, hosts=HOSTS, origins=[])
    assert ask(app, path, "POST", content_length="2", **headers).status_code == status


def test_options_names_the_methods_of_a_path() -> None:
    app = Options(Starlette(routes=ROUTES), routes=ROUTES)
    assert ask(app, "/v1/models", "OPTIONS").headers["allow"] == "GET, HEAD, OPTIONS"
    assert ask(app, "/v1/responses", "OPTIONS").headers["allow"] == "POST, OPTIONS"
    assert ask(app, "/nowhere", "OPTIONS").status_code == 404
