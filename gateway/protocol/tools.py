"""Function tools and JSON answers: the required form of an answer, and the grammar that enforces it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequestError
from gateway.protocol.calls import CLOSING, HEADER
from gateway.protocol.grammar import Grammar, literal
from gateway.protocol.keywords import Budget
from gateway.protocol.schema import Schema
from gateway.protocol.tool_prompt import NAME, OPENING, Tool

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


@dataclass(frozen=True)
class OutputConstraint:
    """The constraint on an answer's form."""

    grammar: str | None = None
    """GBNF grammar for the text after `trigger`; None for no constraint."""
    trigger: str = ""
    """Text after which the grammar applies; empty for the whole answer."""
    calls: bool = False
    """Whether the answer may contain a function call."""


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


def form(tools: Sequence[FunctionTool], choice: ToolChoice, text: Format, error_paths: ErrorPaths) -> OutputConstraint:
    """Return the constraint on the answer. Raises InvalidRequestError."""
    callable_ = _callable(tools, choice)
    json = not isinstance(text, TextFormat)
    if not callable_ and not json:
        return OutputConstraint()
    grammar = Grammar("tools" if callable_ else error_paths.format)
    budget = Budget()
    answer = _answer(grammar, text, error_paths.format, budget) if json else ""
    if not callable_:
        return OutputConstraint(grammar.text(answer))
    call = _call(grammar, callable_, tools, error_paths.tool, budget)
    if requires_call(choice):
        return OutputConstraint(grammar.text(f"{literal(OPENING)} {call}"), calls=True)
    if json:
        return OutputConstraint(grammar.text(f"{literal(OPENING)} {call} | {answer}"), calls=True)
    return OutputConstraint(grammar.text(call), OPENING, calls=True)


def _callable(tools: Sequence[FunctionTool], choice: ToolChoice) -> list[FunctionTool]:
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


def _answer(grammar: Grammar, text: Format, param: str, budget: Budget) -> str:
    if isinstance(text, JsonSchema):
        return Schema(grammar, text.schema, param=param, budget=budget).rule()
    return grammar.common("object")


def _call(
    grammar: Grammar, callable_: Sequence[FunctionTool], tools: Sequence[FunctionTool], place: str, budget: Budget
) -> str:
    """Return a rule for one call after OPENING, in the format that models write and `CallReader` parses."""
    calls = []
    for tool in callable_:
        where = place.format(tools.index(tool))
        if tool.parameters and tool.parameters.get("type", "object") != "object":
            raise InvalidRequestError(f"{where}.type: it must be `object`", param=f"{where}.type")
        schema = {"type": "object", **(tool.parameters or {})}
        arguments = Schema(grammar, schema, param=where, budget=budget).rule()
        calls.append(grammar.rule(f"{literal(HEADER.format(name=tool.name))} {arguments}"))
    return f"({' | '.join(calls)}) {literal(CLOSING)}"
