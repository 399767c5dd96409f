"""The request id of every response, which the log also has, and the security headers for browsers."""

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
"""Headers of every HTTP response; a value that a handler sets takes precedence."""
_STARTS: Final = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class RequestContext:
    """ASGI middleware that assigns request ids, adds headers, and logs requests under `/v1` and failed ones.

    A request that started a response is logged by responses/measurements.py instead, under the same id. Neither query
    strings nor any content is logged.
    """

    def __init__(
        self, app: ASGIApp, *, refused: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`refused` is called with path and error code of a rejected request; `clock` returns seconds."""
        self._app = app
        self._refused = refused
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app, and add the headers to its response."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id, start, status = f"req_{secrets.token_hex(16)}", self._clock(), 500
        started = False

        async def send_with_headers(message: Message) -> None:
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
                await self._app(scope, receive, send_with_headers)
            except ClientDisconnected:
                raise
            except Exception as error:  # noqa: BLE001 - uvicorn would log the exception's text, with content
                await _send_fault(report(error, request_id), scope, receive, send_with_headers, started=started)
            finally:
                refusal = scope["state"].get("refusal")
                if refusal is not None:
                    self._refused(scope["path"], refusal)
                logged = "answered" in scope["state"]
                if not logged and (scope["path"].startswith("/v1/") or status >= 500):
                    self._log(scope, status, start)

    def _log(self, scope: Scope, status: int, start: float) -> None:
        kind, state = "connection" if scope["type"] == "websocket" else "request", scope["state"]
        principal = state.get("principal")
        structlog.get_logger().info(
            kind,
            method=scope.get("method", "GET"),
            path=scope["path"],
            http_status=status,
            code=state.get("refusal") or state.get("code"),
            seconds=round(self._clock() - start, 3),
            tenant=principal.shown if principal else None,
        )


async def _send_fault(fault: InternalError, scope: Scope, receive: Receive, send: Send, *, started: bool) -> None:
    """Send `fault` to the client. An HTTP response that has started stays incomplete: the server then closes it."""
    if not started:
        await refuse(fault, scope, receive, send)
        return
    scope["state"]["refusal"] = fault.code
    if scope["type"] == "websocket":
        with suppress(RuntimeError):  # the socket is already closed
            await send({"type": "websocket.close", "code": 1011, "reason": fault.code})
