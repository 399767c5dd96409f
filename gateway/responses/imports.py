"""Turns that a client adds to a conversation without a request to the model: items, or responses stored before."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.conversations.conversation import MAX_TURNS, Conversation, Entry
from gateway.conversations.turns import Turn
from gateway.errors import ConversationNotFoundError, InvalidRequestError
from gateway.protocol.items import Item, input_item, messages
from gateway.protocol.requests import ItemReference, ResponseCreate
from gateway.protocol.response_events import ResponseEvents
from gateway.responses.services import Services, new_id, new_response_id


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
    turn = _turn(services, request, before, items)
    entry = Entry(turn.id, previous, len(turn.items) - len(items), len(items), services.conversations.now())
    changed = await services.conversations.put_turn(tenant, conversation.id, entry)
    if changed is None:
        raise ConversationNotFoundError(conversation.id)
    await services.sessions.add(tenant, turn, None)
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
        start = 0 if previous is None else _carried(previous, turn)
        at = turn.created_at * 1000 + len(turns)  # keeps the order of turns of the same second
        parent = None if previous is None else previous.id
        entry = Entry(turn.id, parent, start, len(turn.items) - start, at)
        changed = await services.conversations.put_turn(tenant, conversation.id, entry)
        if changed is None:
            raise ConversationNotFoundError(conversation.id)
        conversation, turns[turn.id] = changed, turn
    return conversation


def _carried(previous: Turn, turn: Turn) -> int:
    """Return how many items of `turn` it has from the turn before."""
    last = previous.items[-1]["id"] if previous.items else None
    return next((i for i, item in enumerate(turn.items, 1) if item["id"] == last), 0)


def _turn(services: Services, request: ResponseCreate, before: Turn | None, items: list[Item]) -> Turn:
    events = ResponseEvents(
        request,
        response_id=new_response_id(),
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
