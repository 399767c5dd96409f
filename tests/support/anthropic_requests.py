"""Requests of Anthropic's Messages API."""

from __future__ import annotations

from typing import Any

from gateway.protocol.anthropic import MessagesRequest, read_messages

USER: dict[str, Any] = {"role": "user", "content": "x"}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: dict[str, Any] = {"name": "get_weather", "description": "Weather.", "input_schema": SCHEMA}


def read(**fields: Any) -> MessagesRequest:
    return read_messages({"messages": [USER], "max_tokens": 5, **fields})[0]
