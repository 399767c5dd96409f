"""Random hostile requests: schemas, and bodies that are nearly correct.

The same seed generates the same requests. They reach code that malformed messages (fuzz.py) do not: each is valid JSON,
and most fields have the right type.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from typing import Any, Final

Random = random.Random

MAX_NESTED: Final = 4
WRONG_SHARE: Final = 0.1
"""Share of values in a schema that have the wrong type for their keyword."""
MISSING_SHARE: Final = 0.15
"""Share of fields in a body whose value is replaced by a random JSON value."""

_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_PATTERNS: Final = (
    "^a+$",
    "a|b",
    r"^\d{3}-\d{4}$",
    "(",
    "[^a-z]{2,5}",
    "^(a|b)*c$",
    "x" * 40,
    r"\w\W",
    "",
    "{9}",
    "[]",
)
_FORMATS: Final = ("date", "uuid", "regex", "email", "int32", "")
_NUMBERS: Final = (0, 1, -1, 0.5, 3, 512, 513, 1e300, -1e-300, 1 << 63, 1 << 64, -(1 << 63) - 1, 10**40, True, None)
_WRONG: Final[tuple[Any, ...]] = (None, True, 3, "x", [], [1], [[]], [{}], {}, {"a": [1]})
_REFERENCES: Final = ("#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#/nowhere", "https://example.org/", "#/$defs")


def text(draw: Random, length: int = 12) -> str:
    """Return a short text of letters, control characters and characters of other scripts."""
    letters = string.ascii_letters + string.digits + ' äß茶炊🫖\u202e\x7f"\\'
    return "".join(draw.choices(letters, k=draw.randrange(length + 1)))


def junk(draw: Random, depth: int = 3) -> Any:
    """Return a random JSON value."""
    kind = draw.randrange(8 if depth else 6)
    plain = (None, draw.random() < 0.5, draw.randrange(-(1 << 70), 1 << 70), draw.uniform(-1e300, 1e300), text(draw))
    if kind < 5:
        return plain[kind]
    if kind == 5:
        return draw.choice([[], {}, "", 0, -1])
    if kind == 6:
        return [junk(draw, depth - 1) for _ in range(draw.randrange(4))]
    return {text(draw): junk(draw, depth - 1) for _ in range(draw.randrange(4))}


def schema(draw: Random) -> Any:
    """Return a random schema; most of its keywords have values of the right type."""
    whole = _schema(draw, MAX_NESTED)
    if isinstance(whole, dict) and draw.random() < 0.5:
        whole["$defs"] = {name: _schema(draw, 2) for name in "ab"}
    return whole


def _schema(draw: Random, depth: int) -> Any:
    if draw.random() < 0.06:
        return draw.choice([True, False, {}, None, 3, [[]], "string"])
    makers: dict[str, Callable[[], Any]] = {
        "type": lambda: draw.choice([draw.choice(_TYPES), [draw.choice(_TYPES) for _ in range(draw.randrange(3))]]),
        "enum": lambda: [junk(draw, 1) for _ in range(draw.randrange(4))],
        "const": lambda: junk(draw, 1),
        "$ref": lambda: draw.choice(_REFERENCES),
        "pattern": lambda: draw.choice(_PATTERNS),
        "format": lambda: draw.choice(_FORMATS),
        "required": lambda: [draw.choice("abc") for _ in range(draw.randrange(3))],
        "multipleOf": lambda: draw.choice([1, 2]),
        **{name: lambda: draw.choice(_NUMBERS) for name in ("minimum", "maximum", "exclusiveMinimum")},
        **{name: lambda: draw.choice([0, 1, 3, 9, 513]) for name in ("minLength", "maxLength", "minItems", "maxItems")},
        **{name: lambda: draw.choice([0, 1, 2]) for name in ("minProperties", "maxProperties")},
    }
    if depth:
        below = depth - 1
        makers |= {
            "properties": lambda: {draw.choice("abc"): _schema(draw, below) for _ in range(draw.randrange(4))},
            **{name: lambda: _some(draw, below) for name in ("allOf", "anyOf", "oneOf", "prefixItems")},
            **{name: lambda: _schema(draw, below) for name in ("items", "additionalProperties", "propertyNames")},
        }
    names = draw.sample([*makers], k=min(len(makers), draw.choice([0, 1, 1, 1, 2, 2, 3, 5])))
    return {name: draw.choice(_WRONG) if draw.random() < WRONG_SHARE else makers[name]() for name in names}


def _some(draw: Random, depth: int) -> list[Any]:
    return [_schema(draw, depth) for _ in range(draw.randrange(4))]


def body(draw: Random) -> dict[str, Any]:
    """Return the body of a Responses request; some fields are random JSON values."""
    items = [_item(draw) for _ in range(draw.randrange(1, 4))]
    tools = [{"type": "function", "name": draw.choice("fg"), "parameters": schema(draw)} for _ in range(2)]
    fields: dict[str, Any] = {
        "input": draw.choice([text(draw), items, items]),
        "instructions": text(draw),
        "tools": draw.choice([[], tools[:1], tools]),
        "tool_choice": draw.choice(["auto", "none", "required", {"type": "function", "name": "f"}]),
        "text": {"format": {"type": "json_schema", "name": "x", "schema": schema(draw)}},
        "temperature": draw.choice([0, 0.5, 2]),
        "stop": draw.choice(["x", ["a", "b"]]),
        "metadata": {text(draw, 5): text(draw)},
        "store": draw.choice([True, False]),
        "truncation": draw.choice(["auto", "disabled"]),
        "logit_bias": {"1": 1},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": draw.randrange(21),
        "generate": False,
        "previous_response_id": "resp_1",
    }
    return _mixed(draw, fields, {"input": fields["input"], "max_output_tokens": 1})


def chat_body(draw: Random) -> dict[str, Any]:
    """Return the body of a chat completion; some fields are random JSON values."""
    function = {"name": draw.choice("fg"), "parameters": schema(draw)}
    named = {"name": "x", "schema": schema(draw)}
    fields: dict[str, Any] = {
        "messages": [_message(draw) for _ in range(draw.randrange(1, 4))],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": draw.choice(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]),
        "response_format": {"type": "json_schema", "json_schema": named},
        "stop": draw.choice(["x", ["a", "b"]]),
        "logprobs": True,
        "top_logprobs": draw.randrange(21),
        "seed": draw.randrange(1 << 32),
        "user": text(draw),
    }
    return _mixed(draw, fields, {"messages": fields["messages"], "max_tokens": 1})


def _mixed(draw: Random, fields: dict[str, Any], always: dict[str, Any]) -> dict[str, Any]:
    names = draw.sample([*fields], k=draw.randrange(5))
    chosen = {name: junk(draw) if draw.random() < MISSING_SHARE else fields[name] for name in names}
    if draw.random() < MISSING_SHARE:
        chosen[text(draw)] = junk(draw)
        chosen["audio"] = draw.choice([{"voice": text(draw)}, None])
    return {**always, **chosen}


def _item(draw: Random) -> Any:
    return draw.choice(
        [
            {"role": draw.choice(["user", "system", "assistant", "developer"]), "content": text(draw)},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text(draw)}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": _arguments(draw)},
            {"type": "function_call_output", "call_id": "c", "output": draw.choice([text(draw), junk(draw)])},
            junk(draw),
        ]
    )


def _message(draw: Random) -> Any:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": _arguments(draw)}}
    return draw.choice(
        [
            {"role": draw.choice(["user", "system", "developer"]), "content": text(draw)},
            {"role": "user", "content": [{"type": "text", "text": text(draw)}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": text(draw)},
            {"role": "user", "content": junk(draw)},
            junk(draw),
        ]
    )


def _arguments(draw: Random) -> str:
    nested = "[" * 700 + "]" * 700
    return draw.choice([json.dumps(junk(draw)), '{"a": 1}', "{", text(draw), nested, f'{{"a": {10**40}}}'])
