"""Variants of values that clients send, converted to the form that the request types declare.

Values that are wrong in another way are returned unchanged, for the conversion to refuse them with their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.errors import UnsupportedParameterError
from gateway.protocol.hints import Hints, integer_fields
from gateway.protocol.values import fits

Json = dict[str, Any]

_UNSET: Final = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens", "seed", "top_k"})
"""Fields that many clients set to -1 for no value."""
_ALIASES: Final = {"repetition_penalty": "repeat_penalty"}
_TEXTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
"""Types of parts with text for the model."""
_THOUGHTS: Final = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text"})
"""Types of parts with another model's reasoning, which a model is not shown again."""
_RECORDS: Final = frozenset({"reasoning", "web_search_call", "file_search_call", "mcp_list_tools"})
"""Types of items that record how another server made an answer."""


def with_numbers(body: Json, target: type[msgspec.Struct]) -> Json:
    """Return `body` with integers for floats without a fraction, without -1 for no value, and with aliases resolved."""
    integers, result = integer_fields(target), dict[str, Any]()
    for name, value in body.items():
        if value is None or (name in _UNSET and value == -1):
            continue
        whole = name in integers and isinstance(value, float) and value.is_integer()
        result[name] = int(value) if whole else value
    return result


def whole_numbers(value: Any) -> Any:
    """Return token ids with integers for floats without a fraction; `value` may be nested lists of them."""
    if isinstance(value, list):
        return [whole_numbers(inner) if isinstance(inner, list | float) else inner for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def with_aliases(raw: Mapping[str, Any]) -> Json:
    """Return `raw` with other servers' names of fields replaced; a field under its own name wins."""
    own = {name: value for name, value in raw.items() if name not in _ALIASES}
    for alias, name in _ALIASES.items():
        if raw.get(alias) is not None and own.get(name) is None:
            own[name] = raw[alias]
    return own


def input_items(items: list[Any], hints: Hints) -> list[Any]:
    """Return the input items of a request for a response. Raises UnsupportedParameterError for other kinds of items.

    Items without meaning here remain as `reasoning`, so that the places of the others stay the same.
    """
    return [_input_item(item, f"input[{i}]", hints) if isinstance(item, dict) else item for i, item in enumerate(items)]


def chat_messages(messages: list[Any], hints: Hints) -> list[Any]:
    """Return the messages of a chat completion. Raises UnsupportedParameterError for images, audio and files."""
    return [
        _chat_message(message, f"messages[{i}]", hints) if isinstance(message, dict) else message
        for i, message in enumerate(messages)
    ]


def with_tools(body: Json, hints: Hints) -> Json:
    """Return `body` without the tools that are merely offered and that no model here can use.

    Raises UnsupportedParameterError if `tool_choice` requires one.
    """
    tools, choice = body.get("tools"), body.get("tool_choice")
    if isinstance(choice, dict):
        choice = _choice(choice, hints)
        body = {**body, "tool_choice": choice}
    if not isinstance(tools, list):
        return body
    others = [_kind(tool) for tool in tools if _kind(tool) not in (None, "function")]
    functions = [tool for tool in tools if _kind(tool) in (None, "function")]
    for kind in others:
        hints.add(f"tools[{kind}]", param="tools")
    if others and not functions and choice == "required":
        raise UnsupportedParameterError(
            f"tools: `{str(others[0])[:64]}` is not supported here, and `tool_choice` requires a tool", param="tools"
        )
    return {**body, "tools": functions}


def with_schema(wanted: Any) -> Any:
    """Return the format of an answer in OpenAI's form; other servers accept `schema` next to `type`."""
    if _kind(wanted) not in ("json_object", "json_schema") or not isinstance(wanted.get("schema"), dict):
        return wanted
    rest = {name: value for name, value in wanted.items() if name not in ("type", "schema")}
    return {"type": "json_schema", "name": "answer", **rest, "schema": wanted["schema"]}


def _choice(choice: Json, hints: Hints) -> Json | str:
    kind = _kind(choice)
    if kind not in (None, "function", "allowed_tools"):
        raise UnsupportedParameterError(f"tool_choice: `{kind[:64]}` is not supported here", param="tool_choice")
    if kind != "allowed_tools":
        return choice
    nested = isinstance(choice.get("allowed_tools"), dict)  # as in chat completions
    inner = choice["allowed_tools"] if nested else choice
    if not isinstance(inner.get("tools"), list):
        return choice
    functions = [tool for tool in inner["tools"] if _kind(tool) in (None, "function")]
    for kind in map(_kind, inner["tools"]):
        if kind not in (None, "function"):
            hints.add(f"tool_choice.tools[{kind}]", param="tool_choice")
    if not functions and inner["tools"]:
        if inner.get("mode") == "required":
            raise UnsupportedParameterError(
                "tool_choice: it requires a tool, and functions are the only tools here", param="tool_choice"
            )
        return "none"
    inner = {**inner, "tools": functions}
    return {**choice, "allowed_tools": inner} if nested else inner


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _named(item: Json) -> tuple[Any, Json]:
    """Return an item with its type, which may be missing or another name for the same."""
    kind = item.get("type")
    if kind is None:
        kind = "item_reference" if "id" in item and "role" not in item and "content" not in item else "message"
    if kind in ("custom_tool_call", "custom_tool_call_output"):
        kind, item = _from_custom(item, kind)
    if kind == "function_call_output" and item.get("call_id") is None and isinstance(item.get("name"), str):
        return "message", {"role": "user", "content": item.get("output")}
    return kind, item


def _input_item(item: Json, path: str, hints: Hints) -> Json:
    kind, item = _named(item)
    match kind:
        case "message" if "content" in item:
            return {**item, "type": kind, "content": _parts(item["content"], f"{path}.content", "input_text", hints)}
        case "function_call":
            return {**item, "type": kind, **_arguments(item)}
        case "function_call_output" if "output" in item:
            return {**item, "type": kind, "output": _parts(item["output"], f"{path}.output", "input_text", hints)}
        case "message" | "function_call_output" | "item_reference":
            return {**item, "type": kind}
        case "reasoning" if thought := _thought(item):
            return {"type": kind, "content": thought}
        case str() if kind in _RECORDS:
            hints.add(f"input[{kind}]", param="input")
            return {"type": "reasoning"}
        case str():
            raise UnsupportedParameterError(f"{path}: items of type `{kind[:64]}` are not supported here", param=path)
    return item


def _thought(item: Json) -> list[Json]:
    """Return the readable parts of a model's reasoning."""
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    return [
        {"type": "reasoning_text", "text": part["text"]}
        for part in parts
        if _kind(part) == "reasoning_text" and isinstance(part.get("text"), str)
    ]


def _from_custom(item: Json, kind: str) -> tuple[str, Json]:
    """Return an item about a custom tool, whose input is plain text, as one about a function."""
    if kind == "custom_tool_call_output":
        return "function_call_output", item
    rest = {name: value for name, value in item.items() if name != "input"}
    return "function_call", {**rest, "arguments": {"input": item.get("input")}}


def _chat_message(message: Json, path: str, hints: Hints) -> Json:
    if message.get("audio") is not None:
        raise UnsupportedParameterError(f"{path}.audio: the model reads text only", param=f"{path}.audio")
    message = dict(message)
    if "content" in message:
        message["content"] = _parts(message["content"], f"{path}.content", "text", hints)
    match message.get("role"):
        case "function":  # the predecessor of `tool`
            message |= {"role": "tool", "tool_call_id": message.get("name") or ""}
        case "tool" if "tool_call_id" in message and message["tool_call_id"] is None:
            message["tool_call_id"] = ""
        case "assistant":
            _convert_answer(message)
    return message


def _convert_answer(message: Json) -> None:
    """Convert an assistant's message: `refusal` to text, and calls in the forms of other servers to tool calls."""
    thought = message.pop("reasoning", None)
    if isinstance(thought, str) and message.get("reasoning_content") is None:
        message["reasoning_content"] = thought
    refusal = message.pop("refusal", None)
    if isinstance(refusal, str) and not message.get("content"):
        message["content"] = refusal
    calls, legacy = message.get("tool_calls"), message.pop("function_call", None)
    if isinstance(calls, list):
        message["tool_calls"] = [_chat_call(call) if isinstance(call, dict) else call for call in calls]
    elif isinstance(legacy, dict) and calls is None:
        function = {**legacy, **_arguments(legacy)}
        message["tool_calls"] = [{"type": "function", "id": legacy.get("name"), "function": function}]


def _chat_call(call: Json) -> Json:
    custom = call.get("custom")
    if _kind(call) == "custom" and isinstance(custom, dict):
        rest = {name: value for name, value in call.items() if name != "custom"}
        call = {**rest, "type": "function", "function": _from_custom(custom, "custom_tool_call")[1]}
    function = call.get("function")
    if isinstance(function, dict):
        call = {**call, "function": {**function, **_arguments(function)}}
    return {**call, "id": "" if call.get("id") is None else call["id"]}


def _arguments(call: Json) -> Json:
    """Return the arguments of a call as JSON text; some clients store them decoded, or none."""
    arguments = call.get("arguments")
    if arguments is None:
        return {"arguments": "{}"} if "arguments" in call else {}
    is_decoded = isinstance(arguments, dict) and fits(arguments)
    return {"arguments": json.dumps(arguments, ensure_ascii=False) if is_decoded else arguments}


def _parts(content: Any, path: str, kind: str, hints: Hints) -> Any:
    """Return content as text or as parts of type `kind`; None is empty. Raises UnsupportedParameterError."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    return [_part(part, path, i, kind, hints) for i, part in enumerate(content)]


def _part(part: Any, path: str, number: int, kind: str, hints: Hints) -> Any:
    if isinstance(part, str):
        return {"type": kind, "text": part}
    own = _kind(part)
    if not isinstance(part, dict) or (own is None and "text" not in part):
        return part
    if own in _THOUGHTS:
        hints.add(f"{path}[{own}]")
        return {"type": kind, "text": ""}
    if own is not None and own not in _TEXTS:
        raise UnsupportedParameterError(
            f"{path}[{number}]: parts of type `{own[:64]}` are not supported; the model reads text only",
            param=f"{path}[{number}]",
        )
    field = "refusal" if own == "refusal" else "text"
    if field not in part:
        return part
    text = "" if part[field] is None else part[field]
    return {**{name: value for name, value in part.items() if name != field}, "type": kind, "text": text}
