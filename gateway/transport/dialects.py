"""What differs between the APIs that the gateway speaks: the form of errors, which follows from the path."""

from __future__ import annotations

from typing import Any, Final

from gateway.errors import ApiError

OLLAMA: Final = "/api/"
"""Prefix of the paths of Ollama's API."""


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """Return the JSON body of the error response to a request for `path`."""
    if path.startswith(OLLAMA):
        return {"error": error.message}
    return {"error": error.body()}
