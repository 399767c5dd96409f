"""Reject a request in middleware: the API's error as JSON, over HTTP and at a WebSocket upgrade."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.errors import ApiError, RateLimitExceededError
from gateway.transport.dialects import error_body


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
    more = dict(headers or {})
    if isinstance(error, RateLimitExceededError):
        more["Retry-After"] = str(error.retry_after)
    response = JSONResponse(error_body(error, scope["path"]), status_code=status or error.status, headers=more)
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})
    else:
        await response(scope, receive, send)
