"""Who comes in: said once at the door, and read from the request's state behind it."""

from __future__ import annotations

import itertools

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.caller import ANONYMOUS, Caller


class Callers:
    """ASGI middleware that puts a `Caller` into the state of every connection and request."""

    def __init__(self, app: ASGIApp) -> None:
        """Number the connections of `app` from 1."""
        self._app = app
        self._connections = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the caller said."""
        if scope["type"] != "lifespan":
            scope.setdefault("state", {})["caller"] = Caller(ANONYMOUS, self._user(scope))
        await self._app(scope, receive, send)

    def _user(self, scope: Scope) -> str:
        if scope["type"] == "websocket":
            return f"connection {next(self._connections)}"
        client = scope.get("client")
        return f"address {client[0]}" if client else "address"
