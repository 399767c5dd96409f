"""The turns of a conversation, each with its own items and the result of its response."""

from __future__ import annotations

from typing import Any, Final

from gateway.auth.principal import Principal
from gateway.conversations.conversation import Conversation, Entry
from gateway.conversations.turns import Turn
from gateway.errors import ResponseNotFoundError
from gateway.protocol.items import Item
from gateway.responses.registry import Responses

RESULT: Final = ("status", "incomplete_details", "error", "usage")
"""Fields of a response object that are listed with its turn."""


async def list_turns(responses: Responses, principal: Principal, conversation: Conversation) -> list[dict[str, Any]]:
    """Return all turns that are stored or running, oldest first. Raises ApiError.

    A turn whose items are those of a later turn's record is not read itself, and so has no result.
    """
    found: dict[str, dict[str, Any]] = {}
    lost: set[str] = set()
    for leaf in conversation.leaves():
        path = [entry for entry in conversation.path(leaf) if entry.id not in lost]
        while path and path[0].id not in found:
            entry = path.pop(0)
            turn = await _read(responses, principal, entry.id)
            if turn is None:
                lost.add(entry.id)
                continue
            found[entry.id] = _body(entry, turn.items[entry.start :], turn)
            while path and entry.start == path[0].end and path[0].id not in found:  # this record holds its items, too
                entry = path.pop(0)
                found[entry.id] = _body(entry, turn.items[entry.start : entry.end], None)
    return [found[entry.id] for entry in conversation.entries if entry.id in found]


async def _read(responses: Responses, principal: Principal, response: str) -> Turn | None:
    try:
        return await responses.get_turn(principal, response)
    except ResponseNotFoundError:
        return None


def _body(entry: Entry, items: list[Item], turn: Turn | None) -> dict[str, Any]:
    result = {} if turn is None else {name: turn.response.get(name) for name in RESULT}
    return {**entry.body(), "created_at": entry.at / 1000, "items": items, **result}
