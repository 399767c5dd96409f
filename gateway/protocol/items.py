"""The items of a conversation, in OpenAI's format for clients and as messages for the chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.errors import InvalidRequestError
from gateway.protocol.reasoning import Reasoning
from gateway.protocol.requests import FunctionCall, InputItem, InputMessage, ItemReference
from gateway.protocol.tool_prompt import Message
from gateway.protocol.values import fits, has_many_containers

Item = dict[str, Any]
"""An input or output item with an `id` and a `type`; immutable."""


def input_item(
    item: InputItem, new_id: Callable[[str], str], references: Mapping[str, Item] = MappingProxyType({})
) -> Item:
    """Return an item of a request in the form that is listed later.

    `new_id` returns a new id with the given prefix; `references` are the items that the request refers to, by id.
    """
    if isinstance(item, ItemReference):
        return references[item.id]
    if isinstance(item, InputMessage):
        if item.role == "assistant":
            return text_item(item.text, item_id=new_id("msg"))
        content = [{"type": "input_text", "text": item.text}]
        return {"id": new_id("msg"), "type": "message", "role": item.role, "status": "completed", "content": content}
    if isinstance(item, Reasoning):
        return reasoning_item(item.text, item_id=new_id("rs"))
    prefix = "fc" if isinstance(item, FunctionCall) else "fco"
    return {"id": new_id(prefix), **msgspec.to_builtins(item), "status": "completed"}


def text_item(text: str, *, item_id: str, status: str = "completed", logprobs: Sequence[dict[str, Any]] = ()) -> Item:
    """Return a message item of the model."""
    part = {
        "type": "output_text",
        "text": text,
        "annotations": [],
        **({"logprobs": list(logprobs)} if logprobs else {}),
    }
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part],
    }


def reasoning_item(text: str, *, item_id: str, status: str = "completed") -> Item:
    """Return an item with the model's reasoning."""
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def has_reasoning(items: Sequence[Item]) -> bool:
    """Return whether the answers after the last user message contain reasoning, which templates omit later."""
    for item in reversed(items):
        if item.get("role") == "user":
            return False
        if item["type"] == "reasoning" or (item.get("role") == "assistant" and "</think>" in _text(item["content"])):
            return True
    return False


def page(items: Sequence[Item], *, limit: int, order: str, after: str | None) -> dict[str, Any]:
    """Return a page of a list, starting after the item `after`; `order` is asc or desc. Raises InvalidRequestError."""
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        start = next((i for i, item in enumerate(ordered, 1) if item["id"] == after), None)
        if start is None:
            raise InvalidRequestError(f"after: there is no item {after}", param="after")
        ordered = ordered[start:]
    data = ordered[:limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(ordered) > limit}


def messages(items: Sequence[Item], earlier: Sequence[Item] = ()) -> list[Message]:
    """Convert items to messages for a chat template.

    A call becomes part of the assistant message before it, reasoning of the one after it. Other reasoning is dropped.
    A result has the name of its function, which some templates require; its call may be among `earlier` items.
    """
    result: list[Message] = []
    names = {item["call_id"]: item["name"] for item in (*earlier, *items) if item["type"] == "function_call"}
    thought: list[str] = []
    for item in items:
        if item["type"] == "reasoning":
            thought.append(_text(item["content"]).strip())
            continue
        if item["type"] != "function_call":
            result.append(_message(item, names))
        elif not result or result[-1]["role"] != "assistant" or thought:
            result.append({"role": "assistant", "content": ""})
        if thought and result[-1]["role"] == "assistant":
            result[-1]["reasoning_content"] = "\n\n".join(thought)
        thought.clear()
        if item["type"] == "function_call":
            result[-1].setdefault("tool_calls", []).append(_call(item))
    return result


def _message(item: Item, names: Mapping[str, str]) -> Message:
    if item["type"] == "function_call_output":
        about = {"tool_call_id": item["call_id"], "name": names.get(item["call_id"], "")}
        return {"role": "tool", "content": _text(item["output"]), **about}
    return {"role": _role(item), "content": _text(item["content"])}


def _call(item: Item) -> dict[str, Any]:
    """Return a call in the format of chat templates. Incomplete, too large or too deep arguments remain text."""
    arguments: Any = item["arguments"]
    with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        if not has_many_containers(arguments.encode("utf-8", "surrogatepass")) and fits(
            decoded := msgspec.json.decode(arguments)
        ):
            arguments = decoded
    return {"type": "function", "id": item["call_id"], "function": {"name": item["name"], "arguments": arguments}}


def _role(item: Item) -> str:
    return "system" if item["role"] == "developer" else str(item["role"])


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
