"""JSON in and JSON out: bodies and query strings of HTTP requests, and errors as docs/api.md writes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cache import StoreError
from gateway.errors import (
    ApiError,
    EngineUnavailableError,
    InvalidRequestError,
    MessageTooLargeError,
    StoreUnavailableError,
    UnsupportedParameterError,
)
from gateway.protocol.requests import MAX_MESSAGE, convert, decode

BODY_SECONDS: Final = 30.0
"""How long a client may take to send a body."""
DISCARDED_BYTES: Final = 16 << 20
"""How much of a body that is too large is read all the same: who still sends, as a proxy does, hears no answer."""

Handler = Callable[[Request], Awaitable[Response]]
S = TypeVar("S", bound=msgspec.Struct)


def answering(handler: Handler) -> Handler:
    """The handler, with its ApiErrors and StoreErrors answered and counted, and cut off with an error at the end."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return _refused(request, error)
        except StoreError as error:
            return _refused(request, StoreUnavailableError(f"the conversation can't be read: {error}"))
        except asyncio.CancelledError:  # by uvicorn alone, when its time to stop is over
            return _refused(request, EngineUnavailableError("the gateway stops; try again in a moment"))

    return answer


def _refused(request: Request, error: ApiError) -> Response:
    """The answer; the code is left in the request's state, for log and metrics."""
    request.scope.setdefault("state", {})["refusal"] = error.code
    return error_answer(error)


def error_answer(error: ApiError) -> Response:
    """An error over HTTP: the same object as over the WebSocket, under `error`."""
    retry_after = getattr(error, "retry_after", None)
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"error": error.body()}, status_code=error.status, headers=headers)


async def unrouted(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: no such route, or not with this method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for nothing else
    request.state.code = InvalidRequestError.code  # for the log
    body = InvalidRequestError(f"{error.detail}").body()
    return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)


async def json_body(request: Request) -> dict[str, Any]:
    """The body, a JSON object of at most MAX_MESSAGE bytes; the doors saw to its content type. Raises ApiError."""
    data, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MAX_MESSAGE:
                    data += chunk
                elif size > DISCARDED_BYTES:
                    break
    except TimeoutError as error:
        raise InvalidRequestError(f"the body took longer than {BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise InvalidRequestError("the body was cut off") from error
    if size > MAX_MESSAGE:
        raise MessageTooLargeError(f"a body of over {MAX_MESSAGE} bytes is over the limit")
    return decode(bytes(data))


def query(request: Request, shape: type[S]) -> S:
    """The query string as `shape`. Raises InvalidRequestError or UnsupportedParameterError."""
    known = {field.encode_name for field in msgspec.structs.fields(shape)}
    for name in request.query_params:
        if name not in known:
            raise UnsupportedParameterError(f"`{name}` is not supported here", param=name)
    return convert(dict(request.query_params), shape, strict=False)


async def departure(request: Request) -> None:
    """Return when the client has closed the request, whose body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
