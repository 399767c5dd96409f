"""Reject a request in middleware: the API's error as JSON, over HTTP and at a WebSocket upgrade."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from gateway.errors import ApiError
from gateway.transport.dialects import error_response


async def refuse(
    error: ApiError,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Respond with `error` instead of serving the request; `status` overrides the error's own status.

    The error's code is stored in the request's state, for log and metrics.
    """
    scope.setdefault("state", {})["refusal"] = error.code
    response = error_response(error, scope, status=status, headers=headers)
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})
    else:
        await response(scope, receive, send)
