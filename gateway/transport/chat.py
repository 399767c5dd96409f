"""Chat completions over HTTP, plain or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.observability.faults import report
from gateway.protocol.chat import read_chat
from gateway.protocol.completions import Completion
from gateway.protocol.log import Reader
from gateway.responses.registry import Responses, Running
from gateway.transport.bodies import answering, json_body
from gateway.transport.http import started, whole
from gateway.transport.sse import ALIVE, EventStream, follow


def routes(responses: Responses) -> list[BaseRoute]:
    """For the app."""

    async def create(request: Request) -> Response:
        """Answer a request; who closes it cancels it."""
        wanted, chat = read_chat(await json_body(request))
        running, close = await started(responses, wanted, request)
        response = running.turn.response
        completion = Completion(
            running.turn.id,
            created=response["created_at"],
            model=response["model"],
            logprobs=bool(chat.logprobs),
            usage=chat.stream_options is not None and bool(chat.stream_options.include_usage),
        )
        if chat.stream:
            return EventStream(request, _frames(running, completion), close)
        try:
            ended = await whole(request, running)
            return ended if isinstance(ended, Response) else JSONResponse(completion.whole(ended))
        finally:
            close()

    return [Route("/v1/chat/completions", answering(create), methods=["POST"])]


async def _frames(running: Running, completion: Completion) -> AsyncIterator[bytes]:
    try:
        async for event in follow(running, Reader(running.log)):
            if event is None:
                yield ALIVE
                continue
            failure = running.failure if event["type"] == "response.incomplete" else None
            for chunk in completion.feed(event) if failure is None else [{"error": failure.body()}]:
                yield b"data: %b\n\n" % msgspec.json.encode(chunk)
    except Exception as error:  # noqa: BLE001 - the client must not wait in vain
        yield b"data: %b\n\n" % msgspec.json.encode({"error": report(error, running.turn.id).body()})
    yield b"data: [DONE]\n\n"
