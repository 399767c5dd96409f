"""What every answer carries: a request id, which the log has too, and what browsers need to be told to be careful."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from gateway.errors import InternalError
from gateway.observability.faults import report
from gateway.transport.refusals import refuse

SECURITY: Final = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every HTTP answer; one that says otherwise itself is left alone."""
_STARTS: Final = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class RequestContext:
    """ASGI middleware that numbers requests, stamps their answers, and logs those under `/v1` and those that failed.

    A request that began a response has its line from there, under the same id (responses/runner.py). Neither paths'
    query strings nor any content is logged.
    """

    def __init__(
        self, app: ASGIApp, *, refused: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`refused` hears path and code of what did not get past the doors; `clock` gives seconds."""
        self._app = app
        self._refused = refused
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and stamp what comes back."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id, began, status = f"req_{secrets.token_hex(16)}", self._clock(), 500
        started = False

        async def stamped(message: Message) -> None:
            nonlocal status, started
            started = True
            if message["type"] in _STARTS:
                status = message.get("status", 101)
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers["x-request-id"] = request_id
                if message["type"] == "http.response.start":
                    for name, value in SECURITY.items():
                        headers.setdefault(name, value)
                message["headers"] = headers.raw
            await send(message)

        scope.setdefault("state", {})["request_id"] = request_id
        name = "connection_id" if scope["type"] == "websocket" else "request_id"
        with structlog.contextvars.bound_contextvars(**{name: request_id}):
            try:
                await self._app(scope, receive, stamped)
            except ClientDisconnected:
                raise
            except Exception as error:  # noqa: BLE001 - the last resort: uvicorn would log what the exception quotes
                await _answer(report(error, request_id), scope, receive, stamped, started=started)
            finally:
                refusal = scope["state"].get("refusal")
                if refusal is not None:
                    self._refused(scope["path"], refusal)
                told = "answered" in scope["state"]
                if not told and (scope["path"].startswith("/v1/") or status >= 500):
                    self._log(scope, status, began)

    def _log(self, scope: Scope, status: int, began: float) -> None:
        kind, state = "connection" if scope["type"] == "websocket" else "request", scope["state"]
        principal = state.get("principal")
        structlog.get_logger().info(
            kind,
            method=scope.get("method", "GET"),
            path=scope["path"],
            http_status=status,
            code=state.get("refusal") or state.get("code"),
            seconds=round(self._clock() - began, 3),
            tenant=principal.shown if principal else None,
        )


async def _answer(fault: InternalError, scope: Scope, receive: Receive, send: Send, *, started: bool) -> None:
    """Tell the client of `fault`. An HTTP answer that was begun stays without its end: the server closes it then."""
    if not started:
        await refuse(fault, scope, receive, send)
        return
    scope["state"]["refusal"] = fault.code
    if scope["type"] == "websocket":
        with suppress(RuntimeError):  # it is closed already
            await send({"type": "websocket.close", "code": 1011, "reason": fault.code})
