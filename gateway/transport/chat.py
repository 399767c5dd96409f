"""Chat completions over HTTP, as one JSON object or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.observability.faults import report
from gateway.protocol.chat import read_chat
from gateway.protocol.completions import Completion
from gateway.protocol.events import Incomplete
from gateway.protocol.log import Reader
from gateway.responses.registry import Responses, Running
from gateway.transport.bodies import json_body, with_errors
from gateway.transport.http import start_response, wait_for_end, with_ignored
from gateway.transport.sse import DONE, EventStream, follow


def routes(responses: Responses) -> list[BaseRoute]:
    """Return the routes of the chat completions API."""

    async def create(request: Request) -> Response:
        """Generate a completion; closing the request cancels it."""
        strict_fields = responses.services.settings.strict_fields
        create_request, chat = read_chat(await json_body(request), strict_fields=strict_fields)
        running, close = await start_response(responses, create_request, request)
        response = running.turn.response
        completion = Completion(
            running.turn.id,
            created=response["created_at"],
            model=response["model"],
            fingerprint=responses.services.fingerprint,
            logprobs=bool(chat.logprobs),
            usage=chat.stream_options is not None and bool(chat.stream_options.include_usage),
        )
        if chat.stream:
            return with_ignored(EventStream(request, _frames(running, completion), close), create_request)
        try:
            ended = await wait_for_end(request, running)
            whole = ended if isinstance(ended, Response) else JSONResponse(completion.whole(ended))
            return with_ignored(whole, create_request)
        finally:
            close()

    return [Route("/v1/chat/completions", with_errors(create), methods=["POST"])]


async def _frames(running: Running, completion: Completion) -> AsyncIterator[bytes]:
    try:
        async for event in follow(running, Reader(running.log)):
            failure = running.failure if isinstance(event, Incomplete) else None
            for chunk in completion.feed(event) if failure is None else [{"error": failure.body()}]:
                yield b"data: %b\n\n" % msgspec.json.encode(chunk)
    except Exception as error:  # noqa: BLE001 - the stream must not end without an error
        yield b"data: %b\n\n" % msgspec.json.encode({"error": report(error, running.turn.id).body()})
    yield DONE
