"""Proxies in front of the gateway: only those that the operator trusts may say who the client is."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


class Proxies:
    """ASGI middleware that believes `X-Forwarded-For`, `-Proto` and `-Host` of trusted peers, and of nobody else."""

    def __init__(self, app: ASGIApp, *, trusted: Iterable[str]) -> None:
        """`trusted` are addresses or networks such as `10.0.0.0/8`."""
        self._app = app
        trusted = list(trusted)
        self._trusted = [ipaddress.ip_network(name, strict=False) for name in trusted]
        self._behind = ProxyHeadersMiddleware(app, trusted_hosts=trusted)  # type: ignore[arg-type]  # uvicorn's types

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, as the client's own request if a trusted proxy says whose it is."""
        client = scope.get("client")
        if client is None or not self._trusts(client[0]):
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        host = headers.get("x-forwarded-host", "").rpartition(",")[2].strip()
        if host:
            headers["host"] = host
        await self._behind(scope, receive, send)  # type: ignore[arg-type]

    def _trusts(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in trusted for trusted in self._trusted)
        except ValueError:  # a UNIX socket has no address
            return False
