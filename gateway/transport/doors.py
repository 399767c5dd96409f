"""Who may come in at all: `Host` and `Origin` are checked on every route, before anything else is looked at."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import InvalidRequestError


class Doors:
    """ASGI middleware against DNS rebinding and pages of foreign origin."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], origins: Collection[str]) -> None:
        """`hosts` are names without port; `origins` may call beside the page that this server gives."""
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may come in; refuse the rest with 403."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_known(host):
            reason = f"the host {host} is not served here; see the setting allowed_hosts"
        elif origin is not None and not self._is_friend(origin, host):
            reason = f"pages of {origin} may not call; see the setting allowed_origins"
        else:
            await self._app(scope, receive, send)
            return
        response = JSONResponse({"error": InvalidRequestError(reason).body()}, status_code=403)
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
        else:
            await response(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        try:
            return (urlsplit(f"//{host}").hostname or "") in self._hosts
        except ValueError:
            return False

    def _is_friend(self, origin: str, host: str) -> bool:
        return origin in self._origins or urlsplit(origin).netloc.lower() == host.lower()
