"""Anthropic's Messages API over HTTP, as one JSON object or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.principal import principal_of
from gateway.observability.faults import report
from gateway.protocol.anthropic import MessagesRequest, read_messages
from gateway.protocol.anthropic_events import PING, MessageAnswer, error_body
from gateway.protocol.events import Failed, Incomplete
from gateway.protocol.log import Reader
from gateway.protocol.requests import ResponseCreate
from gateway.responses.preparation import count
from gateway.responses.registry import Responses
from gateway.responses.runner import Running
from gateway.transport.bodies import json_body, with_errors
from gateway.transport.dialects import MESSAGES, REQUEST_ID
from gateway.transport.http import start_response, wait_for_end, with_ignored
from gateway.transport.sse import EventStream, follow


def routes(responses: Responses) -> list[BaseRoute]:
    """Return the routes of the Messages API."""

    async def read(request: Request) -> tuple[MessagesRequest, bool]:
        strict_fields = responses.services.settings.strict_fields
        return await json_body(request, partial(read_messages, strict_fields=strict_fields))

    async def create(request: Request) -> Response:
        """Generate a message; closing the request cancels it."""
        create_request, stream = await read(request)
        running, close = await start_response(responses, create_request, request)
        shows = create_request.shows_thinking
        answer = MessageAnswer(running.id, model=running.response["model"], usage=running.usage, shows_thinking=shows)
        if stream:
            frames = _frames(running, answer, request.state.request_id)
            return _described(request, running.request, EventStream(request, frames, close, alive=_frame(PING)))
        try:
            ended = await wait_for_end(request, running)
            if isinstance(ended, Response):
                return ended
            assert running.log.terminal is not None  # noqa: S101 - for the type checker: the response has ended
            return _described(request, running.request, JSONResponse(answer.whole(running.log.terminal)))
        finally:
            close()

    async def count_tokens(request: Request) -> Response:
        """Count the tokens of a request's prompt."""
        create_request, _ = await read(request)
        tokens = await count(responses.services, create_request, principal_of(request))
        return _described(request, create_request, JSONResponse({"input_tokens": tokens}))

    return [
        Route(MESSAGES, with_errors(create), methods=["POST"]),
        Route(f"{MESSAGES}/count_tokens", with_errors(count_tokens), methods=["POST"]),
    ]


def _described(request: Request, create: ResponseCreate, response: Response) -> Response:
    """Return the response with the id of its request, and with the fields of the request that have no effect."""
    response.headers[REQUEST_ID] = request.state.request_id
    return with_ignored(response, create)


async def _frames(running: Running, answer: MessageAnswer, request_id: str) -> AsyncIterator[bytes]:
    try:
        async for event in follow(running, Reader(running.log)):
            failure = running.failure if isinstance(event, Failed | Incomplete) else None
            for shown in answer.feed(event) if failure is None else [error_body(failure, request_id)]:
                yield _frame(shown)
    except Exception as error:  # noqa: BLE001 - the stream must not end without an error
        yield _frame(error_body(report(error, running.id), request_id))


def _frame(event: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
