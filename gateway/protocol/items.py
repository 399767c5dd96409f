"""The items of a conversation, shaped as OpenAI shapes them: what clients list, and what the model is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.errors import InvalidRequestError
from gateway.protocol.requests import InputMessage

Item = dict[str, Any]
"""An input or output item; it has an `id` and a `type`, and never changes."""


def input_item(message: InputMessage, *, item_id: str) -> Item:
    """A message of a request, as it is listed later. `item_id` is a `msg_` id."""
    if message.role == "assistant":
        return text_item(message.text, item_id=item_id)
    content = [{"type": "input_text", "text": message.text}]
    return {"id": item_id, "type": "message", "role": message.role, "status": "completed", "content": content}


def text_item(text: str, *, item_id: str, status: str = "completed") -> Item:
    """A message that the model said."""
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def page(items: Sequence[Item], *, limit: int, order: str, after: str | None) -> dict[str, Any]:
    """A page of a list, behind the item `after`; `order` is asc or desc. Raises InvalidRequestError."""
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        start = next((i for i, item in enumerate(ordered, 1) if item["id"] == after), None)
        if start is None:
            raise InvalidRequestError(f"after: there is no item {after}", param="after")
        ordered = ordered[start:]
    data = ordered[:limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(ordered) > limit}


def messages(items: Sequence[Item]) -> list[dict[str, str]]:
    """The items as a chat template takes them; `developer` is another name for `system`."""
    return [{"role": _role(item), "content": _text(item)} for item in items]


def _role(item: Item) -> str:
    return "system" if item["role"] == "developer" else str(item["role"])


def _text(item: Item) -> str:
    return "".join(part["text"] for part in item["content"])
