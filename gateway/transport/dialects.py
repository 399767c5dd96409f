"""Error responses in the form of the API that a path belongs to, for middleware, router and handlers alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import Scope

from gateway.errors import ApiError

OLLAMA: Final = "/api/"
"""Prefix of the paths of Ollama's API."""


def error_response(
    error: ApiError, scope: Scope, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the response to a request that `error` ends; `status` overrides the error's own status."""
    retry_after = getattr(error, "retry_after", None)
    more = {**(headers or {}), **({} if retry_after is None else {"Retry-After": str(retry_after)})}
    if scope["path"].startswith(OLLAMA):
        return JSONResponse({"error": error.message}, status or error.status, more)
    return JSONResponse({"error": error.body()}, status or error.status, more)
