"""Checks of `Host`, `Origin` and content type on every route, before all other processing."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import InvalidRequestError
from gateway.transport.refusals import refuse

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class TrustedHosts:
    """ASGI middleware against DNS rebinding, cross-origin pages, and cross-site form posts."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], origins: Collection[str]) -> None:
        """`hosts` are names without port; `origins` are allowed in addition to the server's own.

        With a wildcard among the hosts every IP address is allowed, since DNS rebinding needs a name.
        """
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.rstrip("/") for origin in origins)
        self._any_address = bool(self._hosts & {*WILDCARDS})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app if the request is allowed; otherwise respond with 403, or with 415 if its body is not JSON."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin, status = headers.get("host", ""), headers.get("origin"), 403
        if not self._is_known(host):
            reason = f"the host {host} is not served here; see the setting allowed_hosts"
        elif origin is not None and not self._is_allowed(origin, host):
            reason = f"pages of {origin} may not call; see the setting allowed_origins"
        elif scope["type"] == "http" and not _is_json(headers):
            reason, status = "a request's body must be JSON: send the header `Content-Type: application/json`", 415
        else:
            await self._app(scope, receive, send)
            return
        await refuse(InvalidRequestError(reason), scope, receive, send, status=status)

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._hosts or (self._any_address and ipaddress.ip_address(name) is not None)
        except ValueError:
            return False

    def _is_allowed(self, origin: str, host: str) -> bool:
        try:
            return origin in self._origins or urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            return False


def _is_json(headers: Headers) -> bool:
    """Return whether there is no body, or one that a cross-origin page cannot send without a CORS preflight."""
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return True
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
