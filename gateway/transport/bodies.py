"""JSON bodies and query strings of HTTP requests, and error responses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cache import StoreError
from gateway.auth.principal import principal_of
from gateway.errors import (
    ApiError,
    EngineUnavailableError,
    InvalidRequestError,
    MessageTooLargeError,
    StoreUnavailableError,
    UnsupportedParameterError,
)
from gateway.protocol.requests import MAX_MESSAGE, convert, decode
from gateway.transport.dialects import error_response
from gateway.transport.intake import SMALL, intake_of, owner
from gateway.transport.refusals import refuse

BODY_SECONDS: Final = 30.0
"""Seconds in which a client must send a request body."""
DISCARDED_BYTES: Final = 16 << 20
"""Bytes of an oversized body that are read and discarded, because a proxy that is still sending reads no response."""

Handler = Callable[[Request], Awaitable[Response]]
S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")


def with_errors(handler: Handler) -> Handler:
    """Wrap `handler`: return and count its ApiErrors and StoreErrors, and return an error if it is cancelled."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return _record_refusal(request, error)
        except StoreError as error:
            return _record_refusal(request, StoreUnavailableError(f"the conversation cannot be read: {error}"))
        except asyncio.CancelledError:  # only uvicorn cancels, when its graceful shutdown times out
            return _record_refusal(request, EngineUnavailableError("the gateway is stopping; try again in a moment"))

    return handle


def _record_refusal(request: Request, error: ApiError) -> Response:
    """Return the error response, and leave its code in the request's state for log and metrics."""
    request.scope.setdefault("state", {})["refusal"] = error.code
    return error_response(error, request.scope)


async def routing_error(request: Request, error: Exception) -> Response:
    """Return the response to an error of Starlette's router: no such route, or a wrong method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type only
    request.state.code = InvalidRequestError.code  # for the log
    refusal = InvalidRequestError(f"{error.detail}")
    return error_response(refusal, request.scope, status=error.status_code, headers=error.headers)


def no_route(default: ASGIApp) -> ASGIApp:
    """Return the app for paths without a route: it refuses WebSockets, too, with 404; `default` answers HTTP."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse(InvalidRequestError("Not Found"), scope, receive, send, status=404)
        else:
            await default(scope, receive, send)

    return respond


async def json_body(request: Request, conversion: Callable[[dict[str, Any]], T]) -> T:
    """Read the body, a JSON object of at most MAX_MESSAGE bytes, and return its `conversion`. Raises ApiError.

    A body larger than SMALL is decoded and converted in a turn, since a conversion of many items takes longer than
    the decoding. `TrustedHosts` has checked the content type.
    """
    data = await body(request, MAX_MESSAGE)
    if len(data) <= SMALL:
        return conversion(decode(data))
    pacer = intake_of(request).pacer
    await pacer.turn(owner(request, principal_of(request)))
    with pacer.work():
        return conversion(decode(data))


async def body(request: Request, most: int) -> bytes:
    """Return the body, which has at most `most` bytes. Raises InvalidRequestError or MessageTooLargeError."""
    data, size = bytearray(), 0
    pacer, sender = intake_of(request).pacer, owner(request, principal_of(request))
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= most:
                    data += chunk
                elif size > DISCARDED_BYTES:
                    break
                if size > SMALL:  # uvicorn stops reading the connection until the next part is taken
                    await pacer.turn(sender)
    except TimeoutError as error:
        raise InvalidRequestError(f"the request body took longer than {BODY_SECONDS:g} s to arrive") from error
    except ClientDisconnect as error:
        raise InvalidRequestError("the connection closed before the request body was complete") from error
    if size > most:
        raise MessageTooLargeError(f"the request body is larger than {most} bytes")
    return bytes(data)


def query(request: Request, shape: type[S]) -> S:
    """Decode the query string into `shape`. Raises InvalidRequestError or UnsupportedParameterError."""
    known = {field.encode_name for field in msgspec.structs.fields(shape)}
    for name in request.query_params:
        if name not in known:
            raise UnsupportedParameterError(f"`{name}` is not supported here", param=name)
    return convert(dict(request.query_params), shape, strict=False)


async def disconnected(request: Request) -> None:
    """Wait until the client closes the request; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
