"""Function tools and JSON answers: the types in which a request states the form of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequestError
from gateway.protocol.tool_prompt import Tool

MAX_TOOLS: Final = 128
"""Maximum functions of one request."""

ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True, tag="function", forbid_unknown_fields=True):
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


class NamedFunction(msgspec.Struct, frozen=True, tag="function", forbid_unknown_fields=True):
    """The function that the model must call."""

    name: ToolName


ToolChoice = Literal["auto", "none", "required"] | NamedFunction


class TextFormat(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    """Plain text."""


class JsonObject(msgspec.Struct, frozen=True, tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True, tag="json_schema", forbid_unknown_fields=True):
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
    """llguidance's JSON of a grammar for the text after `trigger`; None for no constraint."""
    trigger: str = ""
    """Text after which the grammar applies; empty for the whole answer."""
    calls: bool = False
    """Whether the answer may contain a function call."""
    ignored: tuple[str, ...] = ()
    """Paths of the schemas' keywords that are not enforced."""


@dataclass(frozen=True)
class ErrorPaths:
    """Paths of a request's fields, for errors that name the field."""

    input: str = "input"
    tool: str = "tools[{}].parameters"
    format: str = "text.format.schema"


def requires_call(choice: ToolChoice) -> bool:
    """Return whether the answer must be a function call."""
    return choice == "required" or isinstance(choice, NamedFunction)


def callable_tools(tools: Sequence[FunctionTool], choice: ToolChoice) -> list[FunctionTool]:
    """Return the functions that the answer may call. Raises InvalidRequestError."""
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequestError("tools: two functions have the same name", param="tools")
    if isinstance(choice, NamedFunction):
        if choice.name not in names:
            raise InvalidRequestError(
                f"tool_choice: there is no function {choice.name} in `tools`", param="tool_choice"
            )
        return [tool for tool in tools if tool.name == choice.name]
    if choice == "required" and not tools:
        raise InvalidRequestError("tool_choice: `required` needs at least one function in `tools`", param="tool_choice")
    return [] if choice == "none" else list(tools)
