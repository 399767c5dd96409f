"""The body of a request to Anthropic's Messages API, as far as it has an effect here."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.protocol.requests import MAX_ITEMS, CallId
from gateway.protocol.sampling import Penalty, Probability, StopString
from gateway.protocol.tools import MAX_TOOLS, ToolName

MAX_STOPS: Final = 16
"""Maximum stop sequences of one request."""


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    """A piece of text."""

    text: str


class Thought(msgspec.Struct, frozen=True, tag="thinking"):
    """The model's reasoning before its answer; a block without text has no effect."""

    thinking: str = ""
    signature: str | None = None  # our own, which needs no check: a client may send any text as reasoning


class ToolUse(msgspec.Struct, frozen=True, kw_only=True, tag="tool_use"):
    """A call that the model made."""

    id: CallId
    name: ToolName
    input: dict[str, Any]


class ToolResult(msgspec.Struct, frozen=True, kw_only=True, tag="tool_result"):
    """The result of a call."""

    tool_use_id: CallId
    content: str | list[TextBlock | Thought] | None = None
    is_error: bool | None = None


Block = TextBlock | Thought | ToolUse | ToolResult


class Message(msgspec.Struct, frozen=True):
    """One message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class CustomTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: ToolName
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class Choice(msgspec.Struct, frozen=True):
    """Whether the model may or must call a function."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None
    """No effect: an answer has at most one call."""


class OutputFormat(msgspec.Struct, frozen=True, tag="json_schema"):
    """JSON that conforms to a schema."""

    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True):
    """The form of the answer."""

    format: OutputFormat | None = None


class Thinking(msgspec.Struct, frozen=True):
    """Whether the model reasons before its answer: `adaptive` leaves it to the model."""

    type: Literal["enabled", "adaptive", "disabled"]
    display: Literal["summarized", "omitted"] | None = None
    """With `omitted`, the answer has no blocks of reasoning."""


class MessagesCreate(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request for a message."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_ITEMS)]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    max_tokens: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    """0 encodes the prompt and answers nothing."""
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=2)] | None = None
    reproducible: bool | None = None
    tools: Annotated[list[CustomTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The same as `output_config.format`, which takes precedence."""
    truncation: Literal["auto", "disabled"] | None = None
