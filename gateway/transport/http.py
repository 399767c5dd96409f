"""The Responses API over HTTP: responses as JSON or as server-sent events, and stored responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.principal import principal_of
from gateway.conversations.continuation import in_conversation, take_target
from gateway.conversations.unstored import Unstored
from gateway.errors import EngineUnavailableError, InvalidRequestError, ResponseNotFoundError, UnsupportedParameterError
from gateway.protocol.events import Created, terminal_event
from gateway.protocol.hints import HEADER
from gateway.protocol.items import page
from gateway.protocol.log import Reader
from gateway.protocol.requests import ResponseCreate, read_body
from gateway.responses.preparation import count
from gateway.responses.registry import Responses
from gateway.responses.runner import Running
from gateway.transport.bodies import disconnected, json_body, query, with_errors
from gateway.transport.dialects import error_response
from gateway.transport.sse import DONE, EventStream, frame, frames

CANCEL_SECONDS: Final = 10.0
"""Seconds in which a cancelled response must end; normally it takes one engine step."""
CLIENT_CLOSED: Final = Response(status_code=499)
"""nginx's status for a request that its client closed: only the log shows it."""


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


async def start_response(
    responses: Responses, create: ResponseCreate, request: Request
) -> tuple[Running, Callable[[], None]]:
    """Start a response; return it with the function to call when its HTTP request closes. Raises ApiError."""
    [running], close = await start_responses(responses, create, request)
    return running, close


async def start_responses(
    responses: Responses, create: ResponseCreate, request: Request, *, count: int = 1
) -> tuple[list[Running], Callable[[], None]]:
    """Start `count` responses to the same prompt; return them like `start_response`. Raises ApiError."""
    unstored = Unstored(responses.services.pool.forget)
    principal = principal_of(request)
    try:
        group = await responses.start_group(create, count, principal=principal, unstored=unstored)
    except BaseException:
        unstored.close()
        raise
    request.state.answered = True

    def close() -> None:
        for running in group:
            running.release(lost=False)
        unstored.close()

    return group, close


async def wait_for_end(request: Request, running: Running) -> dict[str, Any] | Response:
    """Return the ended response, the error with which it failed, or CLIENT_CLOSED if the client disconnected."""
    ended = await wait_for_ends(request, [running])
    return ended if isinstance(ended, Response) else ended[0]


async def wait_for_ends(request: Request, group: Sequence[Running]) -> list[dict[str, Any]] | Response:
    """Return the ended responses, the error with which the first one failed, or CLIENT_CLOSED."""
    closing = asyncio.create_task(disconnected(request))
    pending = {closing, *(running.task for running in group)}
    try:
        while pending != {closing} and closing in pending and not any(running.failure for running in group):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closing.cancel()
    failure = next((running.failure for running in group if running.failure is not None), None)
    if failure is not None:
        return error_response(failure, request.scope)  # counted as failed, not as rejected
    ended = [dict(running.log.terminal.response) for running in group if running.log.terminal is not None]
    return ended if len(ended) == len(group) else CLIENT_CLOSED


def _accepted(running: Running) -> dict[str, Any]:
    """Return the response as it was accepted: in the background as `queued`, whatever has happened since."""
    first = Reader(running.log).next()
    assert isinstance(first, Created), first  # noqa: S101
    return first.response


def with_ignored(response: Response, create: ResponseCreate) -> Response:
    """Return the HTTP response to a request, with the header that lists the fields without effect."""
    if create.ignored and response is not CLIENT_CLOSED:
        response.headers[HEADER] = ", ".join(create.ignored)
    return response


class HttpResponses:
    """The routes of the Responses API."""

    def __init__(self, responses: Responses) -> None:
        """Serve `responses`."""
        self._responses = responses

    @property
    def routes(self) -> list[BaseRoute]:
        """Return the routes for the app."""
        root, one = "/v1/responses", "/v1/responses/{id}"
        return [
            Route(root, with_errors(self.create), methods=["POST"]),
            Route(f"{root}/input_tokens", with_errors(self.input_tokens), methods=["POST"]),
            Route(one, with_errors(self.retrieve), methods=["GET"]),
            Route(one, with_errors(self.delete), methods=["DELETE"]),
            Route(f"{one}/cancel", with_errors(self.cancel), methods=["POST"]),
            Route(f"{one}/input_items", with_errors(self.input_items), methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        """Generate a response; closing the request cancels it, unless it runs in the background."""
        create, stream = await self._read(request)
        running, close = await start_response(self._responses, create, request)
        if stream:
            return with_ignored(EventStream(request, frames(running, Reader(running.log)), close), running.request)
        try:
            ended = _accepted(running) if create.background else await wait_for_end(request, running)
            return with_ignored(ended if isinstance(ended, Response) else JSONResponse(ended), running.request)
        finally:
            close()

    async def input_tokens(self, request: Request) -> Response:
        """Count the tokens of a request's prompt."""
        create, _ = await self._read(request)
        create = await self._responses.turns.resolve(create, principal_of(request))
        self._responses.check_ended(create, principal_of(request))
        tokens = await count(self._responses.services, create, principal_of(request))
        return with_ignored(JSONResponse({"object": "response.input_tokens", "input_tokens": tokens}), create)

    async def _read(self, request: Request) -> tuple[ResponseCreate, bool]:
        def convert_body(body: dict[str, Any]) -> tuple[ResponseCreate, bool]:
            target = take_target(body)
            create, stream = read_body(body, strict_fields=self._responses.services.settings.strict_fields)
            return in_conversation(create, target), stream

        return await json_body(request, convert_body)

    async def retrieve(self, request: Request) -> Response:
        """Return a response as it stands, or with `stream` its events.

        Of a response that ended longer ago than `resume_grace`, only the last event remains.
        """
        params, principal = query(request, Retrieve), principal_of(request)
        if params.include_obfuscation:
            raise UnsupportedParameterError("`include_obfuscation` is not supported here", param="include_obfuscation")
        if params.starting_after is not None and not params.stream:
            raise InvalidRequestError("starting_after: it requires `stream=true`", param="starting_after")
        running = await self._responses.find_undeleted(principal, request.path_params["id"])
        if running is not None and params.stream:
            return self._resume(request, running, -1 if params.starting_after is None else params.starting_after)
        response = (await self._responses.get_turn(principal, request.path_params["id"])).response
        if not params.stream:
            return JSONResponse(response)
        last = terminal_event(response, number=0 if params.starting_after is None else params.starting_after + 1)
        return Response(frame(last) + DONE, media_type="text/event-stream")

    @staticmethod
    def _resume(request: Request, running: Running, after: int) -> Response:
        reader = running.resume(after)

        def close() -> None:
            running.release(
                lost=True
            )  # a resuming client has a bad connection: closing here is another loss, not a cancel

        return EventStream(request, frames(running, reader), close)

    async def delete(self, request: Request) -> Response:
        """Delete a response, after cancelling it if it is running."""
        response, principal = request.path_params["id"], principal_of(request)
        running = self._responses.find_response(principal, response)
        if running is not None:
            await self._end(running)
        if not await self._responses.delete(principal, response):
            raise ResponseNotFoundError(response)
        return JSONResponse({"id": response, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """Cancel a running response and return it."""
        response, principal = request.path_params["id"], principal_of(request)
        running = self._responses.find_response(principal, response)
        if running is None or running.ended:
            await self._responses.get_turn(principal, response)
            raise InvalidRequestError(f"{response} has already ended", param="response_id")
        await self._end(running)
        return JSONResponse(running.response)

    @staticmethod
    async def _end(running: Running) -> None:
        running.end()
        await asyncio.wait({running.task}, timeout=CANCEL_SECONDS)
        if not running.ended:
            raise EngineUnavailableError("the engine has not stopped this response yet; try again in a moment")

    async def input_items(self, request: Request) -> Response:
        """Return a page of the response's input items."""
        params, principal = query(request, List), principal_of(request)
        turn = await self._responses.get_turn(principal, request.path_params["id"])
        return JSONResponse(page(turn.items[: turn.input], limit=params.limit, order=params.order, after=params.after))
