"""Function tools and JSON answers: the types in which a request states the form of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequestError
from gateway.protocol.call_format import CallFormat, Parameters
from gateway.protocol.reasoning import ReasoningStart
from gateway.protocol.tool_prompt import NAME, Tool

MAX_TOOLS: Final = 128
"""Maximum functions of one request."""

ToolName = Annotated[str, Meta(pattern=rf"^{NAME}\Z")]


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """A function that the model may call, and that the client executes."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def shown(self) -> Tool:
        """The function in the format of chat templates."""
        about = {"name": self.name, "description": self.description or "", "parameters": self.parameters or {}}
        return {"type": "function", "function": about}


class NamedFunction(msgspec.Struct, frozen=True, tag="function"):
    """The function that the model must call."""

    name: ToolName


class AllowedTools(msgspec.Struct, frozen=True, tag="allowed_tools"):
    """The functions, among those of the request, that the model may call, or must call one of."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Meta(min_length=1, max_length=MAX_TOOLS)]


ToolChoice = Literal["auto", "none", "required"] | NamedFunction | AllowedTools


class TextFormat(msgspec.Struct, frozen=True, tag="text"):
    """Plain text."""


class JsonObject(msgspec.Struct, frozen=True, tag="json_object"):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True, tag="json_schema"):
    """JSON that conforms to a schema."""

    name: ToolName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


Format = TextFormat | JsonObject | JsonSchema


class GrammarFormat(msgspec.Struct, frozen=True, kw_only=True, tag="grammar"):
    """Text in a form that a field of llama-server or vLLM states."""

    syntax: Literal["grammar", "regex", "choice", "json"]
    """`grammar` is GBNF, or llguidance's Lark; `choice` is one of several texts; `json` is a JSON schema."""
    definition: str | list[str] | dict[str, Any]
    path: str
    """The field."""


AnyFormat = Format | GrammarFormat


@dataclass(frozen=True)
class OutputConstraint:
    """The constraint on an answer's form."""

    grammar: str | None = None
    """llguidance's JSON of a grammar; None for no constraint."""
    whole: bool = False
    """Whether the answer contains no free text."""
    calls: CallFormat | None = None
    """Format of function calls; None if the answer may contain none."""
    parameters: Parameters = field(default_factory=dict)
    """Kinds of parameters that are written between tags; empty for other formats."""
    fenced: tuple[str, ...] = ()
    """Functions without `strict`, whose calls some models write as JSON in a code fence."""
    ignored: tuple[str, ...] = ()
    """Paths of the schemas' keywords that are not enforced."""
    reasoning: ReasoningStart = ""
    """Whether reasoning is separated from the answer."""
    markers: tuple[tuple[str, int], ...] = ()
    """The control tokens around messages in channels, with their ids."""

    @property
    def controls(self) -> tuple[int, ...]:
        """The control tokens of calls and channels, which count as their names."""
        pairs = (*self.markers, *(self.calls.controls if self.calls is not None else ()))
        return tuple(dict.fromkeys(token for _, token in pairs))


@dataclass(frozen=True)
class ErrorPaths:
    """Paths of a request's fields, for errors that name the field."""

    input: str = "input"
    tool: str = "tools[{}].parameters"
    format: str = "text.format.schema"


def requires_call(choice: ToolChoice) -> bool:
    """Return whether the answer must be a function call."""
    mode = choice.mode if isinstance(choice, AllowedTools) else choice
    return mode == "required" or isinstance(mode, NamedFunction)


def callable_tools(tools: Sequence[FunctionTool], choice: ToolChoice) -> list[FunctionTool]:
    """Return the functions that the answer may call. Raises InvalidRequestError."""
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequestError("tools: two functions have the same name", param="tools")
    allowed = None
    if isinstance(choice, NamedFunction):
        allowed = [choice.name]
    elif isinstance(choice, AllowedTools):
        allowed = [function.name for function in choice.tools]
    if allowed is not None:
        if missing := next((name for name in allowed if name not in names), None):
            raise InvalidRequestError(f"tool_choice: there is no function {missing} in `tools`", param="tool_choice")
        return [tool for tool in tools if tool.name in allowed]
    if choice == "required" and not tools:
        raise InvalidRequestError("tool_choice: `required` needs at least one function in `tools`", param="tool_choice")
    return [] if choice == "none" else list(tools)
