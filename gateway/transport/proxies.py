"""The client's address: the peer's own, or the one that a trusted proxy reports."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gateway.transport import addresses

_PORT: Final = re.compile(r":\d*$")
"""The port at the end of a host; an IPv6 address ends with `]`."""


_DEFAULT_PORTS: Final = ("80", "443")
"""Ports that browsers omit. Behind two proxies the nearest one may report 80 though the browser uses 443."""


class Proxies:
    """ASGI middleware that applies `X-Forwarded-For`, `-Proto`, `-Host` and `-Port` from trusted peers only.

    IPv4-mapped addresses become IPv4 in `scope["client"]`, so that each client has one address for limits.
    """

    def __init__(self, app: ASGIApp, *, trusted: Iterable[str]) -> None:
        """`trusted` are addresses or networks such as `10.0.0.0/8`."""
        self._app = app
        self._trusted = [addresses.network(name) for name in trusted]
        hosts = [text for network in self._trusted for text in addresses.spellings(network)]
        self._behind = ProxyHeadersMiddleware(self._forwarded, trusted_hosts=hosts)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app with the address, scheme and host that a trusted proxy forwards."""
        _unmap(scope)
        client = scope.get("client")
        if client is None or not self._trusts(client[0]):
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        if host := _last(headers, "x-forwarded-host"):
            headers["host"] = host
        port = _last(headers, "x-forwarded-port")
        host = headers.get("host", "")
        if host and port.isdecimal() and port not in _DEFAULT_PORTS and not _PORT.search(host):
            headers["host"] = f"{host}:{port}"
        await self._behind(scope, receive, send)  # type: ignore[arg-type]

    async def _forwarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        _unmap(scope)
        await self._app(scope, receive, send)

    def _trusts(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in trusted for trusted in self._trusted)
        except ValueError:  # a UNIX socket has no address
            return False


def _last(headers: MutableHeaders, name: str) -> str:
    """Return the value that the nearest proxy appended; earlier ones may be the client's own."""
    return headers.get(name, "").rpartition(",")[2].strip()


def _unmap(scope: Scope) -> None:
    client = scope.get("client")
    if client is not None:
        scope["client"] = (addresses.unmapped(client[0]), client[1])
