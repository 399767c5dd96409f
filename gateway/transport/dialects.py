"""Error responses in the form of the API that a path belongs to, for middleware, router and handlers alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import Scope

from gateway.errors import ApiError
from gateway.protocol.anthropic_events import error_body, error_status

MESSAGES: Final = "/v1/messages"
"""Prefix of the paths of Anthropic's Messages API."""
OLLAMA: Final = "/api/"
"""Prefix of the paths of Ollama's API."""
REQUEST_ID: Final = "request-id"
"""Header in which Anthropic's clients look for the id of a request."""


def error_response(
    error: ApiError, scope: Scope, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the response to a request that `error` ends; `status` overrides the error's own status."""
    path, retry_after = scope["path"], getattr(error, "retry_after", None)
    more = {**(headers or {}), **({} if retry_after is None else {"Retry-After": str(retry_after)})}
    if path == MESSAGES or path.startswith(f"{MESSAGES}/"):
        request_id = str(scope["state"]["request_id"])
        body = error_body(error, request_id, status=status)
        return JSONResponse(body, status or error_status(error), {**more, REQUEST_ID: request_id})
    body = {"error": error.message if path.startswith(OLLAMA) else error.body()}
    return JSONResponse(body, status or error.status, more)
