"""The Conversations API: the conversations of a user, listed, changed and deleted, and their items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.principal import principal_of
from gateway.conversations.continuation import TurnKey
from gateway.conversations.conversation import MAX_DRAFT, MAX_TURNS, Conversation
from gateway.conversations.search import MAX_QUERY
from gateway.errors import (
    ConversationNotFoundError,
    InvalidRequestError,
    ItemNotFoundError,
    UnsupportedParameterError,
)
from gateway.protocol.hints import HEADER, Hints
from gateway.protocol.items import Item, page
from gateway.protocol.requests import ItemReference, ResponseCreate, convert, read
from gateway.protocol.sampling import Key64, Text512
from gateway.responses.conversations import check_has_conversations
from gateway.responses.imports import EarlierTurn, add_items, adopt_responses, import_turns
from gateway.responses.registry import Responses
from gateway.responses.turn_list import list_turns
from gateway.transport.bodies import S, json_body, query, with_errors

ROOT: Final = "/v1/conversations"
NewId = Annotated[str, Meta(pattern="^conv_[0-9a-f]{32}$", max_length=37)]
ResponseId = Annotated[str, Meta(pattern="^resp_[0-9a-f]{32}$", max_length=37)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
Metadata = Annotated[dict[Key64, Text512], Meta(max_length=16)]


class ConversationCreate(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /v1/conversations`."""

    id: NewId | None = None
    metadata: Metadata | None = None
    items: list[Any] | None = None
    responses: Annotated[list[str], Meta(max_length=MAX_TURNS)] | None = None
    created_at: Seconds | None = None


class ConversationUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /v1/conversations/{id}`."""

    metadata: Metadata | UnsetType | None = UNSET
    draft: Annotated[str, Meta(max_length=MAX_DRAFT)] | None = None
    head: str | None = None


class ItemsCreate(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /v1/conversations/{id}/items`."""

    items: list[Any]


class TurnCreate(msgspec.Struct, frozen=True, kw_only=True):
    """A turn in the body of `POST /v1/conversations/{id}/turns`."""

    id: ResponseId
    previous_response_id: ResponseId | None = None
    items: list[Any]
    key: TurnKey = ""
    created_at: Seconds | None = None


class TurnsCreate(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /v1/conversations/{id}/turns`."""

    turns: Annotated[list[TurnCreate], Meta(min_length=1, max_length=MAX_TURNS)]


class ConversationList(msgspec.Struct, frozen=True):
    """The query of `GET /v1/conversations`."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


class Search(msgspec.Struct, frozen=True):
    """The query of `GET /v1/conversations/search`."""

    q: Annotated[str, Meta(min_length=1, max_length=MAX_QUERY)]
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    after: str | None = None


class ItemList(msgspec.Struct, frozen=True):
    """The query of `GET /v1/conversations/{id}/items`."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    response: str | None = None


def routes(responses: Responses) -> list[BaseRoute]:
    """Return the routes for the app."""
    served, one = ConversationRoutes(responses), f"{ROOT}/{{id}}"
    return [
        Route(ROOT, with_errors(served.list), methods=["GET"]),
        Route(ROOT, with_errors(served.create), methods=["POST"]),
        Route(f"{ROOT}/search", with_errors(served.search), methods=["GET"]),
        Route(one, with_errors(served.retrieve), methods=["GET"]),
        Route(one, with_errors(served.update), methods=["POST"]),
        Route(one, with_errors(served.delete), methods=["DELETE"]),
        Route(f"{one}/turns", with_errors(served.turns), methods=["GET"]),
        Route(f"{one}/turns", with_errors(served.create_turns), methods=["POST"]),
        Route(f"{one}/items", with_errors(served.items), methods=["GET"]),
        Route(f"{one}/items", with_errors(served.create_items), methods=["POST"]),
        Route(f"{one}/items/{{item}}", with_errors(served.retrieve_item), methods=["GET"]),
        Route(f"{one}/items/{{item}}", with_errors(served.delete_item), methods=["DELETE"]),
    ]


class ConversationRoutes:
    """The handlers of the routes."""

    def __init__(self, responses: Responses) -> None:
        """Serve the conversations to which `responses` belong."""
        self._responses = responses
        self._services = responses.services
        self._conversations = responses.services.conversations
        self._turns = responses.turns

    async def create(self, request: Request) -> Response:
        """Create a conversation, empty, with items, or of stored responses."""
        principal = principal_of(request)
        check_has_conversations(principal)
        create, hints = await self._body(request, ConversationCreate)
        added = self._items(create.items) if create.items else None
        conversation = await self._conversations.create(
            principal.tenant,
            metadata=create.metadata or {},
            id_=create.id,
            created_at=_milliseconds(create.created_at),
        )
        if conversation is None:
            raise ConversationNotFoundError(create.id or "")
        if not conversation.entries:  # one that existed is returned as it is
            if create.responses:
                conversation = await adopt_responses(self._services, principal.tenant, conversation, create.responses)
            if added is not None:
                conversation, _ = await add_items(self._services, principal.tenant, conversation, added)
        return _json(conversation.body(), hints)

    async def list(self, request: Request) -> Response:
        """Return a page of the caller's conversations, by their last change."""
        principal, params = principal_of(request), query(request, ConversationList)
        check_has_conversations(principal)
        found = await self._conversations.page(
            principal.tenant, limit=params.limit, after=params.after, newest_first=params.order == "desc"
        )
        if found is None:
            raise InvalidRequestError(f"after: there is no conversation {params.after}", param="after")
        conversations, has_more = found
        data = [conversation.body(whole=False) for conversation in conversations]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return JSONResponse({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more})

    async def search(self, request: Request) -> Response:
        """Return a page of the conversations whose title or texts contain a text."""
        principal, params = principal_of(request), query(request, Search)
        check_has_conversations(principal)
        text = params.q.strip()
        if not text:
            raise InvalidRequestError("q: it is empty; send the text to find", param="q")
        found = await self._conversations.search(principal.tenant, text, limit=params.limit, after=params.after)
        if found is None:
            raise InvalidRequestError(f"after: there is no conversation {params.after}", param="after")
        return JSONResponse(
            {"object": "list", "data": found.results, "last_id": found.last_id, "has_more": found.has_more}
        )

    async def retrieve(self, request: Request) -> Response:
        """Return a conversation."""
        return JSONResponse((await self._get(request)).body())

    async def update(self, request: Request) -> Response:
        """Change metadata, draft or head."""
        principal, id_ = principal_of(request), request.path_params["id"]
        update, hints = await self._body(request, ConversationUpdate)
        conversation = await self._get(request)
        if update.head is not None and conversation.find(update.head) is None:
            raise InvalidRequestError(f"head: the conversation has no turn {update.head}", param="head")
        metadata = None if update.metadata is UNSET else update.metadata or {}
        changed = await self._conversations.update(
            principal.tenant, id_, metadata=metadata, draft=update.draft, head=update.head
        )
        if changed is None:
            raise ConversationNotFoundError(id_)
        return _json(changed.body(), hints)

    async def delete(self, request: Request) -> Response:
        """Delete a conversation and all of its responses."""
        id_ = request.path_params["id"]
        await self._turns.delete(principal_of(request), id_)
        return JSONResponse({"id": id_, "object": "conversation.deleted", "deleted": True})

    async def turns(self, request: Request) -> Response:
        """Return all turns of all branches, with their items."""
        conversation = await self._get(request)
        turns = await list_turns(self._responses, principal_of(request), conversation)
        return JSONResponse({"object": "list", "conversation": conversation.body(), "data": turns})

    async def create_turns(self, request: Request) -> Response:
        """Add turns of which the client has stored the texts."""
        body, hints = await self._body(request, TurnsCreate)
        turns = [
            EarlierTurn(
                turn.id, turn.previous_response_id, self._items(turn.items), turn.key, _milliseconds(turn.created_at)
            )
            for turn in body.turns
        ]
        if any(isinstance(item, ItemReference) for turn in turns for item in turn.request.items):
            raise InvalidRequestError("turns: a reference is no item; send the item itself", param="turns")
        conversation = await self._get(request)
        changed = await import_turns(self._services, principal_of(request).tenant, conversation, turns)
        return _json(changed.body(), hints)

    async def items(self, request: Request) -> Response:
        """Return a page of the items up to the head, or up to another response."""
        params, conversation = query(request, ItemList), await self._get(request)
        if params.response is not None and conversation.find(params.response) is None:
            raise InvalidRequestError(f"response: the conversation has no turn {params.response}", param="response")
        items = await self._conversations.items(principal_of(request).tenant, conversation, params.response)
        return JSONResponse(page(items, limit=params.limit, order=params.order, after=params.after))

    async def create_items(self, request: Request) -> Response:
        """Add items after the head, as if they had been said."""
        body, hints = await self._body(request, ItemsCreate)
        added, conversation = self._items(body.items), await self._get(request)
        _, items = await add_items(self._services, principal_of(request).tenant, conversation, added)
        return _json(page(items, limit=len(items), order="asc", after=None), hints)

    async def retrieve_item(self, request: Request) -> Response:
        """Return one item of any branch."""
        return JSONResponse(await self._item(request))

    async def delete_item(self, request: Request) -> Response:
        """Refuse: the model has seen the item as part of all that follows."""
        await self._item(request)
        raise UnsupportedParameterError(
            "items cannot be deleted one by one, since later responses contain them; delete the conversation",
            param="item_id",
        )

    async def _item(self, request: Request) -> Item:
        conversation, wanted = await self._get(request), request.path_params["item"]
        for leaf in conversation.leaves():
            for item in await self._conversations.items(principal_of(request).tenant, conversation, leaf):
                if item["id"] == wanted:
                    return item
        raise ItemNotFoundError(f"the conversation has no item {wanted}", param="item_id")

    async def _get(self, request: Request) -> Conversation:
        return await self._turns.get(principal_of(request), request.path_params["id"])

    async def _body(self, request: Request, shape: type[S]) -> tuple[S, Sequence[str]]:
        """Return the body as `shape`, and the fields that have no effect. Raises ApiError."""
        hints = Hints(strict=self._services.settings.strict_fields)

        def convert_body(raw: dict[str, Any]) -> S:
            return convert(hints.select(raw, shape, neutral={}, demands={}), shape)

        return await json_body(request, convert_body), hints.ignored

    def _items(self, items: Sequence[Any]) -> ResponseCreate:
        """Return items as the input of a request. Raises ApiError."""
        if not items:
            raise InvalidRequestError("items: the list is empty; send at least one item", param="items")
        message = read(
            {"type": "response.create", "input": list(items)}, strict_fields=self._services.settings.strict_fields
        )
        assert isinstance(message, ResponseCreate)  # noqa: S101 - for the type checker
        return message


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def _json(body: dict[str, Any], ignored: Sequence[str]) -> Response:
    return JSONResponse(body, headers={HEADER: ", ".join(ignored)} if ignored else None)
