"""The Responses API over HTTP: answers plain or as server-sent events, and what was stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.principal import principal_of
from gateway.conversations.unstored import Unstored
from gateway.errors import EngineUnavailableError, InvalidRequestError, ResponseNotFoundError, UnsupportedParameterError
from gateway.protocol.events import retold
from gateway.protocol.items import page
from gateway.protocol.log import Reader
from gateway.protocol.requests import ResponseCreate, read_body
from gateway.responses.preparation import count
from gateway.responses.registry import Responses, Running
from gateway.transport.bodies import answering, departure, error_answer, json_body, query
from gateway.transport.sse import EventStream, frame, frames

CANCEL_SECONDS: Final = 10.0
"""How long a cancelled response may take to end; a step, if all is well."""
GONE: Final = Response(status_code=499)
"""For the log alone, as nginx has it: who asked is not there to read it."""


class Retrieve(msgspec.Struct, frozen=True):
    """The query of `GET /v1/responses/{id}`."""

    stream: bool = False
    starting_after: Annotated[int, Meta(ge=0)] | None = None
    include_obfuscation: bool = False


class List(msgspec.Struct, frozen=True):
    """The query of `GET /v1/responses/{id}/input_items`."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


async def started(responses: Responses, create: ResponseCreate, request: Request) -> tuple[Running, Callable[[], None]]:
    """A response that has begun, and what its HTTP request calls when it is closed. Raises ApiError."""
    unstored = Unstored()
    try:
        running = await responses.start(create, principal=principal_of(request), unstored=unstored)
    except BaseException:
        unstored.close()
        raise
    request.state.answered = True

    def close() -> None:
        running.let_go(lost=False)
        unstored.close()

    return running, close


async def whole(request: Request, running: Running) -> dict[str, Any] | Response:
    """The response when it has ended, the error for which it failed, or GONE when its client is gone."""
    leaving = asyncio.create_task(departure(request))
    try:
        await asyncio.wait({leaving, running.task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    failure = running.failure
    if failure is not None:
        return error_answer(failure)  # counted as failed, not as one that was refused
    return GONE if running.log.terminal is None else dict(running.log.terminal["response"])


class HttpResponses:
    """The routes."""

    def __init__(self, responses: Responses) -> None:
        """Answer from `responses`."""
        self._responses = responses

    @property
    def routes(self) -> list[BaseRoute]:
        """For the app."""
        root, one = "/v1/responses", "/v1/responses/{id}"
        return [
            Route(root, answering(self.create), methods=["POST"]),
            Route(f"{root}/input_tokens", answering(self.input_tokens), methods=["POST"]),
            Route(one, answering(self.retrieve), methods=["GET"]),
            Route(one, answering(self.delete), methods=["DELETE"]),
            Route(f"{one}/cancel", answering(self.cancel), methods=["POST"]),
            Route(f"{one}/input_items", answering(self.input_items), methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        """Answer a request; who closes it cancels it."""
        create, stream = read_body(await json_body(request))
        running, close = await started(self._responses, create, request)
        if stream:
            return EventStream(request, frames(running, Reader(running.log)), close)
        try:
            ended = await whole(request, running)
            return ended if isinstance(ended, Response) else JSONResponse(ended)
        finally:
            close()

    async def input_tokens(self, request: Request) -> Response:
        """Count the tokens that a request's prompt would have."""
        create, _ = read_body(await json_body(request))
        tokens = await count(self._responses.services, create, principal_of(request))
        return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})

    async def retrieve(self, request: Request) -> Response:
        """A response as it stands; with `stream`, its events, which one that ended long ago has but one of."""
        asked, principal = query(request, Retrieve), principal_of(request)
        if asked.include_obfuscation:
            raise UnsupportedParameterError("`include_obfuscation` is not supported here", param="include_obfuscation")
        if asked.starting_after is not None and not asked.stream:
            raise InvalidRequestError("starting_after: goes with stream=true", param="starting_after")
        running = await self._responses.find_kept(principal, request.path_params["id"])
        if running is not None and asked.stream:
            return self._resume(request, running, -1 if asked.starting_after is None else asked.starting_after)
        response = (await self._responses.record(principal, request.path_params["id"])).response
        if not asked.stream:
            return JSONResponse(response)
        last = retold(response, number=0 if asked.starting_after is None else asked.starting_after + 1)
        return Response(frame(last), media_type="text/event-stream")

    @staticmethod
    def _resume(request: Request, running: Running, after: int) -> Response:
        reader = running.resume(after)

        def close() -> None:
            running.let_go(lost=True)  # whoever resumes is on a bad line: a cut here means no more than the first one

        return EventStream(request, frames(running, reader), close)

    async def delete(self, request: Request) -> Response:
        """Delete a response; one that runs is cancelled first."""
        response, principal = request.path_params["id"], principal_of(request)
        running = self._responses.find(principal, response)
        if running is not None:
            await self._end(running)
        if not await self._responses.delete(principal, response):
            raise ResponseNotFoundError(response)
        return JSONResponse({"id": response, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """End a running response and give what there is of it."""
        response, principal = request.path_params["id"], principal_of(request)
        running = self._responses.find(principal, response)
        if running is None or running.ended:
            await self._responses.record(principal, response)
            raise InvalidRequestError(f"{response} has ended already", param="response_id")
        await self._end(running)
        return JSONResponse(running.turn.response)

    @staticmethod
    async def _end(running: Running) -> None:
        running.turn.end()
        await asyncio.wait({running.task}, timeout=CANCEL_SECONDS)
        if not running.ended:
            raise EngineUnavailableError("the engine does not end this response; try again in a moment")

    async def input_items(self, request: Request) -> Response:
        """What the model was shown, a page at a time."""
        asked, principal = query(request, List), principal_of(request)
        turn = await self._responses.record(principal, request.path_params["id"])
        return JSONResponse(page(turn.items[: turn.input], limit=asked.limit, order=asked.order, after=asked.after))
