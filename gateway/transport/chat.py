"""Chat completions over HTTP, as one JSON object or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.observability.faults import report
from gateway.protocol.chat import read_chat
from gateway.protocol.completions import Completion
from gateway.protocol.events import Failed, Incomplete
from gateway.protocol.log import Reader
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.text import TextCompletion
from gateway.responses.registry import Responses
from gateway.responses.runner import Running
from gateway.transport.bodies import json_body, with_errors
from gateway.transport.http import start_responses, wait_for_ends, with_ignored
from gateway.transport.sse import DONE, EventStream, follow_all


def routes(responses: Responses) -> list[BaseRoute]:
    """Return the routes of the chat completions API."""

    async def create(request: Request) -> Response:
        """Generate a completion; closing the request cancels it."""
        strict_fields = responses.services.settings.strict_fields
        create_request, chat = await json_body(request, partial(read_chat, strict_fields=strict_fields))
        usage = chat.stream_options is not None and bool(chat.stream_options.include_usage)
        count = chat.n or 1
        make = partial(Completion, logprobs=bool(chat.logprobs), usage=usage, count=count)
        return await complete(responses, request, create_request, make, stream=bool(chat.stream), count=count)

    return [Route("/v1/chat/completions", with_errors(create), methods=["POST"])]


async def complete(
    responses: Responses,
    request: Request,
    create: ResponseCreate,
    make: Callable[..., Completion | TextCompletion],
    *,
    stream: bool,
    count: int = 1,
) -> Response:
    """Start `count` responses and return them as a completion: a stream of chunks, or one object. Raises ApiError.

    `make` builds the completion from the id of the first response and `created`, `model` and `fingerprint`.
    """
    group, close = await start_responses(responses, create, request, count=count)
    response = group[0].response
    completion = make(
        group[0].id,
        created=response["created_at"],
        model=response["model"],
        fingerprint=responses.services.fingerprint,
    )
    if stream:
        return with_ignored(EventStream(request, chunk_frames(group, completion), close), group[0].request)
    try:
        ended = await wait_for_ends(request, group)
        return with_ignored(
            ended if isinstance(ended, Response) else JSONResponse(completion.whole(*ended)), group[0].request
        )
    finally:
        close()


async def chunk_frames(group: Sequence[Running], completion: Completion | TextCompletion) -> AsyncIterator[bytes]:
    """Yield the chunks of a completion as frames, then `[DONE]`; the first failure is a frame with `error`."""
    try:
        async with aclosing(follow_all(*((running, Reader(running.log)) for running in group))) as events:
            async for index, event in events:
                failure = group[index].failure if isinstance(event, Incomplete) else None
                for chunk in completion.feed(event, index) if failure is None else [{"error": failure.body()}]:
                    yield b"data: %b\n\n" % msgspec.json.encode(chunk)
                if failure is not None or isinstance(event, Failed):
                    break
    except Exception as error:  # noqa: BLE001 - the stream must not end without an error
        yield b"data: %b\n\n" % msgspec.json.encode({"error": report(error, group[0].id).body()})
    yield DONE
