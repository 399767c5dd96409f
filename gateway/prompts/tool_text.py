"""Tools and calls as templates read them: external text is hidden, and what templates look into is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.prompts.tool_formats import ToolSupport
from gateway.protocol.tool_prompt import Tool

Hide = Callable[[Any], Any]
"""Replaces each text in a value by a mark, keys included."""

_TYPES: Final = frozenset(("string", "number", "integer", "boolean", "object", "array", "null", "function"))
_TOOL_KEYS: Final = frozenset(("type", "function", "name", "description", "parameters", "arguments", "id", "strict"))
_SCHEMA_KEYS: Final = frozenset(
    ("type", "description", "title", "default", "examples", "enum", "const", "format", "nullable", "$ref", "$defs",
     "definitions", "properties", "required", "additionalProperties", "patternProperties", "items", "prefixItems",
     "anyOf", "oneOf", "allOf", "not", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
     "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties")
)  # fmt: skip
_KEYS: Final = _TOOL_KEYS | _SCHEMA_KEYS
"""Keys that templates look up or compare. They are plain words, which become no control tokens."""


def hidden_tool(value: Any, hide: Hide) -> Any:
    """Return a tool, or a part of it, with its texts hidden except for known keys and the names of JSON's types."""
    if isinstance(value, dict):
        return {
            key if key in _KEYS else hide(key): inner if key == "type" and _is_type(inner) else hidden_tool(inner, hide)
            for key, inner in value.items()
        }
    return [hidden_tool(inner, hide) for inner in value] if isinstance(value, list) else hide(value)


def hidden_call(call: dict[str, Any], hide: Hide, support: ToolSupport | None) -> dict[str, Any]:
    """Return a call with its name and arguments hidden, the arguments as the template expects them."""
    function = call["function"]
    arguments = function["arguments"] if support is None else support.arguments(function["arguments"])
    return {**call, "function": {"name": hide(function["name"]), "arguments": hide(arguments)}}


def simplified(tools: Sequence[Tool]) -> list[Tool]:
    """Return the tools with at most one type in each schema: some templates recurse endlessly on others."""
    return [_simplified(tool) for tool in tools]


def _simplified(value: Any) -> Any:
    if isinstance(value, list):
        return [_simplified(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    reduced = {key: _simplified(inner) for key, inner in value.items()}
    kinds = reduced.get("type")
    if isinstance(kinds, list):
        kinds = reduced["type"] = next((kind for kind in kinds if kind != "null"), "null")
    is_shown = isinstance(kinds, dict) or (_is_type(kinds) and kinds != "null")
    return {key: inner for key, inner in reduced.items() if key != "type" or is_shown}


def _is_type(value: Any) -> bool:
    kinds = value if isinstance(value, list) else [value]
    return all(isinstance(kind, str) and kind in _TYPES for kind in kinds)
