"""Ollama's API over HTTP: answers as lines of JSON, or as one object."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.errors import UnsupportedParameterError
from gateway.observability.faults import report
from gateway.protocol.events import Incomplete
from gateway.protocol.log import Reader
from gateway.protocol.ollama import Translated, read_ollama_chat, read_ollama_generate
from gateway.protocol.ollama_answers import Durations, OllamaAnswer
from gateway.responses.registry import Responses
from gateway.responses.runner import Running
from gateway.transport.bodies import Handler, json_body, with_errors
from gateway.transport.http import start_response, wait_for_end, with_ignored
from gateway.transport.ollama_models import can_think, model_routes, served_name
from gateway.transport.sse import EventStream, follow

ALIVE: Final = b" "
"""Sent when there is nothing else to send: white space before the next object, which JSON allows."""
_PULL: Final = "the operator of this server manages its models, with `samovar models`"
_EMBED: Final = "this server computes no embeddings; send these requests to another server"
REFUSED: Final = {
    ("POST", "/api/pull"): _PULL,
    ("POST", "/api/push"): _PULL,
    ("POST", "/api/create"): _PULL,
    ("POST", "/api/copy"): _PULL,
    ("DELETE", "/api/delete"): _PULL,
    ("POST", "/api/embed"): _EMBED,
    ("POST", "/api/embeddings"): _EMBED,
}
"""Routes of Ollama that are refused, each with the reason."""


class Read(Protocol):
    """Converts a decoded body."""

    def __call__(self, raw: dict[str, Any], *, strict_fields: bool, can_think: bool) -> Translated:
        """Return the request. Raises ApiError."""


class LineStream(EventStream):
    """Sends JSON objects, one a line."""

    media_type = "application/x-ndjson"


def routes(responses: Responses) -> list[BaseRoute]:
    """Return the routes of Ollama's API."""

    async def chat(request: Request) -> Response:
        """Answer a conversation; closing the request cancels the answer."""
        return await _respond(responses, request, read_ollama_chat, chat=True)

    async def generate(request: Request) -> Response:
        """Answer a prompt; closing the request cancels the answer."""
        return await _respond(responses, request, read_ollama_generate, chat=False)

    return [
        Route("/api/chat", with_errors(chat), methods=["POST"]),
        Route("/api/generate", with_errors(generate), methods=["POST"]),
        *model_routes(responses.services),
        *(Route(path, with_errors(_refused(path, why)), methods=[method]) for (method, path), why in REFUSED.items()),
    ]


async def _respond(responses: Responses, request: Request, read: Read, *, chat: bool) -> Response:
    arrived, services = time.monotonic(), responses.services
    strict_fields = services.settings.strict_fields
    conversion = partial(read, strict_fields=strict_fields, can_think=can_think(services))
    translated = await json_body(request, conversion)
    wanted = translated.request
    create = msgspec.structs.replace(wanted, model=served_name(services, wanted.model))
    running, close = await start_response(responses, create, request)
    answer = OllamaAnswer(
        wanted.model or running.response["model"],
        chat=chat,
        logprobs=wanted.logprobs is not None,
        clock=services.clock,
        durations=partial(_durations, running, arrived),
    )
    if translated.stream and not translated.loads:
        return with_ignored(LineStream(request, _lines(running, answer), close, alive=ALIVE), running.request)
    try:
        ended = await wait_for_end(request, running)
        if isinstance(ended, Response):
            return ended
        body = answer.loaded() if translated.loads else answer.whole(ended)
        return with_ignored(JSONResponse(body), running.request)
    finally:
        close()


def _durations(running: Running, arrived: float) -> Durations:
    timings = running.timings
    return Durations(time.monotonic() - arrived, timings.load, timings.prompt, timings.answer)


async def _lines(running: Running, answer: OllamaAnswer) -> AsyncIterator[bytes]:
    try:
        async for event in follow(running, Reader(running.log)):
            failure = running.failure if isinstance(event, Incomplete) else None
            for piece in answer.feed(event) if failure is None else [{"error": failure.message}]:
                yield msgspec.json.encode(piece) + b"\n"
    except Exception as error:  # noqa: BLE001 - the stream must not end without an error
        yield msgspec.json.encode({"error": report(error, running.id).message}) + b"\n"


def _refused(path: str, why: str) -> Handler:
    async def refuse(_: Request) -> Response:
        raise UnsupportedParameterError(f"{path} is not supported here: {why}")

    return refuse
