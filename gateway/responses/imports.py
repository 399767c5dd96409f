"""Turns that a client adds to a conversation without a request to the model: items, responses, or whole branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gateway.conversations.conversation import MAX_TURNS, Conversation, Entry
from gateway.conversations.turns import Turn
from gateway.errors import ConversationNotFoundError, InvalidRequestError
from gateway.protocol.items import Item, input_item, messages
from gateway.protocol.requests import ItemReference, ResponseCreate
from gateway.protocol.response_events import ResponseEvents
from gateway.responses.services import Services, new_id, new_response_id


@dataclass(frozen=True)
class EarlierTurn:
    """A turn that a client has stored itself."""

    id: str
    """The response's id, which the client may choose if the response is not stored."""
    previous: str | None
    """Id of the turn that it continues, which is one of the conversation or comes before this one in the import."""
    request: ResponseCreate
    """Its own items."""
    key: str
    created_at: int | None
    """Milliseconds since the epoch."""


async def add_items(
    services: Services, tenant: str, conversation: Conversation, request: ResponseCreate
) -> tuple[Conversation, list[Item]]:
    """Add the items of `request` after the conversation's head. Raises ApiError or StoreError."""
    if any(isinstance(item, ItemReference) for item in request.items):
        raise InvalidRequestError("items: a reference is no item; send the item itself", param="items")
    if len(conversation.entries) >= MAX_TURNS:
        raise InvalidRequestError(f"conversation: it has {MAX_TURNS} turns; begin a new one", param="conversation")
    previous = await services.conversations.latest_stored(tenant, conversation)
    found = None if previous is None else await services.sessions.get(tenant, previous)
    before = found[0] if found is not None else None
    items = [input_item(item, new_id) for item in request.items]
    turn = _turn(services, request, before, items, new_response_id())
    entry = Entry(turn.id, previous, len(turn.items) - len(items), len(items), services.conversations.now())
    await services.sessions.add(tenant, turn, None)  # before its entry, which would have no text after a crash
    changed = await services.conversations.put_turn(tenant, conversation.id, entry)
    if changed is None:  # deleted meanwhile
        await services.sessions.delete(tenant, turn.id)
        raise ConversationNotFoundError(conversation.id)
    return changed, items


async def adopt_responses(
    services: Services, tenant: str, conversation: Conversation, responses: Sequence[str]
) -> Conversation:
    """Add stored responses of the tenant as turns, in this order; those that are not stored are left out."""
    turns: dict[str, Turn] = {}
    for response in dict.fromkeys(responses):
        found = await services.sessions.get(tenant, response)
        if found is None:
            continue
        turn = found[0]
        previous = turns.get(turn.previous or "")
        start = _carried(previous, turn)
        at = turn.created_at * 1000 + len(turns)  # keeps the order of turns of the same second
        parent = None if previous is None else previous.id
        entry = Entry(turn.id, parent, start, len(turn.items) - start, at)
        changed = await services.conversations.put_turn(tenant, conversation.id, entry)
        if changed is None:
            raise ConversationNotFoundError(conversation.id)
        conversation, turns[turn.id] = changed, turn
    return conversation


async def import_turns(
    services: Services, tenant: str, conversation: Conversation, turns: Sequence[EarlierTurn]
) -> Conversation:
    """Add turns that are not in the conversation yet; return the conversation. Raises ApiError or StoreError.

    A turn whose response is stored is added as it was, one whose response was deleted is left out, and of others the
    items are stored. An interrupted import can be repeated: nothing is added twice.
    """
    known: dict[str | None, Turn | None] = {None: None}
    for new in turns:
        before = await _imported(services, tenant, conversation, known, new.previous)
        stored = await services.sessions.get(tenant, new.id)
        if conversation.find(new.id) is not None and stored is not None:
            known[new.id] = stored[0]
            continue
        if await services.sessions.is_deleted(tenant, new.id):
            known[new.id] = before  # the turns after it continue the one before it
            continue
        if len(conversation.entries) >= MAX_TURNS:
            raise InvalidRequestError(f"turns: a conversation has {MAX_TURNS} turns at most", param="turns")
        if stored is None:
            turn = _turn(
                services, new.request, before, [input_item(item, new_id) for item in new.request.items], new.id
            )
            await services.sessions.add(tenant, turn, None)
            start = 0 if before is None else len(before.items)
        else:
            turn = stored[0]
            start = _carried(before, turn)
        at = turn.created_at * 1000 if new.created_at is None else new.created_at
        entry = Entry(turn.id, before.id if before else None, start, len(turn.items) - start, at, new.key)
        changed = await services.conversations.import_turn(tenant, conversation.id, entry)
        if changed is None:
            raise ConversationNotFoundError(conversation.id)
        conversation, known[new.id] = changed, turn
    return conversation


async def _imported(
    services: Services, tenant: str, conversation: Conversation, known: dict[str | None, Turn | None], id_: str | None
) -> Turn | None:
    """Return the turn that an imported one continues. Raises InvalidRequestError."""
    if id_ not in known:
        if conversation.find(id_) is None:
            raise InvalidRequestError(
                f"turns: {id_} is neither a turn of the conversation nor one before it in `turns`", param="turns"
            )
        found = await services.sessions.get(tenant, id_ or "")
        known[id_] = None if found is None else found[0]
    return known[id_]


def _carried(previous: Turn | None, turn: Turn) -> int:
    """Return how many items of `turn` it has from the turn before, if there is one."""
    last = previous.items[-1]["id"] if previous is not None and previous.items else None
    return next((i for i, item in enumerate(turn.items, 1) if item["id"] == last), 0)


def _turn(services: Services, request: ResponseCreate, before: Turn | None, items: list[Item], id_: str) -> Turn:
    events = ResponseEvents(
        request,
        response_id=id_,
        model=services.model.entry.name,
        clock=services.clock,
        temperature=0.0,
        top_p=1.0,
        max_output_tokens=0,
    )
    response = {**events.response, "status": "completed", "previous_response_id": before.id if before else None}
    return Turn(
        id=response["id"],
        previous=before.id if before is not None else None,
        created_at=response["created_at"],
        began=before.began if before is not None else response["created_at"],
        instructions=None,
        items=[*(before.items if before is not None else ()), *items],
        input=(len(before.items) if before is not None else 0) + len(items),
        ended_by=str(messages(items)[-1]["role"]),
        response=msgspec.to_builtins(response),
    )
