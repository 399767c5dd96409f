"""Anthropic's Messages API: its requests, converted to the requests for responses that chat completions use, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, ClassVar, Final

import msgspec

from gateway.errors import InvalidRequestError, UnsupportedParameterError
from gateway.protocol.anthropic_body import (
    Choice,
    Message,
    MessagesCreate,
    TextBlock,
    Thinking,
    Thought,
    ToolResult,
    ToolUse,
)
from gateway.protocol.chat import Stateless
from gateway.protocol.hints import DEMANDS, Demands, Hints, Neutral
from gateway.protocol.reasoning import Reasoning, ReasoningText
from gateway.protocol.requests import (
    MAX_ITEMS,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    TemplateOptions,
    TextOptions,
    check_schemas,
    convert,
)
from gateway.protocol.shapes import with_aliases, with_numbers
from gateway.protocol.tools import (
    ErrorPaths,
    Format,
    FunctionTool,
    JsonSchema,
    NamedFunction,
    TextFormat,
    ToolChoice,
    requires_call,
)
from gateway.protocol.values import check_values

Json = dict[str, Any]

BILLING: Final = "x-anthropic-billing-header:"
"""Start of a system block with which Claude Code names itself for billing. It differs between requests, and the KV of
all text after it could not be reused."""
_RECORDS: Final = frozenset(
    {
        "redacted_thinking",
        "fallback",
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_result",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
    }
)
"""Blocks that record how another server made an answer. They have no meaning for the model here."""


class MessagesRequest(Stateless, frozen=True, kw_only=True, tag="message"):
    """A request whose response is not stored, since its client sends the whole conversation each time."""

    route: ClassVar[str] = "messages"
    error_paths: ClassVar[ErrorPaths] = ErrorPaths("messages", "tools[{}].input_schema", "output_config.format.schema")
    shows_thinking: bool = False
    """Whether the answer has blocks with the model's reasoning."""


_NEUTRAL: Final[Neutral] = {
    "service_tier": ["auto", "standard_only"],
    "speed": ["standard"],
}
_DEMANDS: Final[Demands] = {
    **DEMANDS,
    "stop": "use `stop_sequences`",
    "response_format": "use `output_config.format`",
    "max_completion_tokens": "use `max_tokens`",
}


def read_messages(raw: Json, *, strict_fields: bool = False) -> tuple[MessagesRequest, bool]:
    """Convert a decoded body; return the request for a response, and whether to stream it.

    With `strict_fields` every field must have an effect. Raises InvalidRequestError or UnsupportedParameterError that
    names the field.
    """
    hints = Hints(strict=strict_fields)
    body = hints.select(with_aliases(raw), MessagesCreate, neutral=_NEUTRAL, demands=_DEMANDS)
    create = convert(_with_known_blocks(body, hints), MessagesCreate)
    if not all(create.stop_sequences or ()):
        raise InvalidRequestError("stop_sequences: a stop sequence must not be empty", param="stop_sequences")
    request = _request(create, hints)
    check_schemas(request)
    return request, create.stream is True


def _with_known_blocks(body: Json, hints: Hints) -> Json:
    """Return the fields with blocks and tools that MessagesCreate declares, and record what has no effect.

    Raises UnsupportedParameterError.
    """
    body = _with_custom_tools(with_numbers(body, MessagesCreate), hints)
    if isinstance(body.get("messages"), list):
        body["messages"] = [
            {**message, "content": _blocks(message["content"], f"messages[{i}].content", hints)}
            if isinstance(message, dict) and "content" in message
            else message
            for i, message in enumerate(body["messages"])
        ]
    if isinstance(body.get("system"), list):
        body["system"] = _blocks(body["system"], "system", hints)
    hints.add_unused(body, MessagesCreate)
    return body


def _blocks(content: Any, path: str, hints: Hints) -> Any:
    if not isinstance(content, list):
        return content
    return [
        _block(block, f"{path}[{i}]", hints) if isinstance(block, dict) else block for i, block in enumerate(content)
    ]


def _block(block: Json, path: str, hints: Hints) -> Json:
    match block.get("type"):
        case "tool_result" if "content" in block:
            return {**block, "content": _blocks(block["content"], f"{path}.content", hints)}
        case "text" | "tool_use" | "tool_result":
            return block
        case "thinking" if block.get("thinking"):
            return block
        case str(kind) if kind == "thinking" or kind in _RECORDS:
            hints.add(f"{path}[{kind}]", param=path)
            return {"type": "thinking"}
        case str(kind):
            raise UnsupportedParameterError(
                f"{path}: blocks of type `{kind[:64]}` are not supported here; the model reads text only", param=path
            )
    return block


def _with_custom_tools(body: Json, hints: Hints) -> Json:
    """Return the fields without tools that Anthropic's server would run, or that only its models know.

    Raises UnsupportedParameterError if `tool_choice` requires one.
    """
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not isinstance(tools, list):
        return body
    others = [tool for tool in tools if isinstance(tool, dict) and tool.get("type") not in (None, "custom")]
    for tool in others:
        hints.add(f"tools[{str(tool['type'])[:64]}]", param="tools")
    custom = [tool for tool in tools if tool not in others]
    if isinstance(choice, dict):
        is_named = choice.get("type") == "tool" and any(tool.get("name") == choice.get("name") for tool in others)
        if is_named or (choice.get("type") == "any" and others and not custom):
            raise UnsupportedParameterError(
                f"tools: `{str(others[0]['type'])[:64]}` is not supported here, and `tool_choice` requires it",
                param="tools",
            )
    return {**body, "tools": custom}


def _request(create: MessagesCreate, hints: Hints) -> MessagesRequest:
    wanted = (create.output_config and create.output_config.format) or create.output_format
    answer = TextFormat() if wanted is None else JsonSchema(name="answer", schema=wanted.schema)
    items, choice = _conversation(create), _choice(create.tool_choice)
    thinking = create.thinking or Thinking("disabled")
    shared = {
        name: getattr(create, name)
        for name in (
            "model", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
            "repeat_penalty", "reproducible", "truncation",
        )
    }  # fmt: skip
    return MessagesRequest(
        input=[*items],
        instructions=_system(create.system, hints),
        max_output_tokens=create.max_tokens or None,
        generate=False if create.max_tokens == 0 else None,
        stop=create.stop_sequences,
        tools=[
            FunctionTool(name=tool.name, description=tool.description, parameters=tool.input_schema)
            for tool in create.tools or ()
        ],
        tool_choice=choice,
        text=TextOptions(answer),
        continues=_continues(items, choice, answer),
        chat_template_kwargs=TemplateOptions(enable_thinking=True) if thinking.type == "enabled" else None,
        shows_thinking=thinking.type != "disabled" and thinking.display != "omitted",
        ignored=hints.ignored,
        **shared,
    )


def _conversation(create: MessagesCreate) -> list[InputItem]:
    """Return the messages as items. Raises InvalidRequestError."""
    items = list(_merged(item for i, message in enumerate(create.messages) for item in _items(message, i)))
    if len(items) > MAX_ITEMS:
        raise InvalidRequestError(
            f"messages: they contain more than {MAX_ITEMS} texts and calls; drop the oldest", param="messages"
        )
    last = items[-1] if items else None
    if isinstance(last, InputMessage) and last.role == "assistant" and not last.text.strip():
        items.pop()  # an empty answer, in the place of the one that the client expects
    return items


def _continues(items: list[InputItem], choice: ToolChoice, answer: Format) -> bool:
    """Return whether the answer continues the last message, which is then the model's. Raises InvalidRequestError."""
    last = items[-1] if items else None
    if not isinstance(last, InputMessage) or last.role != "assistant":
        return False
    if requires_call(choice) or not isinstance(answer, TextFormat):
        raise InvalidRequestError(
            "messages: an answer with a required format cannot continue the last message, which is the assistant's; "
            "end with a message of the user, or leave out `tool_choice` and `output_config.format`",
            param="messages",
        )
    return True


def _system(system: str | list[TextBlock] | None, hints: Hints) -> str | None:
    """Return the instructions, without the block that varies between the requests of a conversation."""
    if not isinstance(system, list):
        return system or None
    texts = [block.text for block in system if not block.text.startswith(BILLING)]
    if len(texts) < len(system):
        hints.add("system[x-anthropic-billing-header]", param="system")
    return _joined(texts) or None


def _choice(choice: Choice | None) -> ToolChoice:
    """Convert `tool_choice`. Raises InvalidRequestError."""
    if choice is None or choice.type == "auto":
        return "auto"
    if choice.type == "tool":
        if choice.name is None:
            raise InvalidRequestError("tool_choice.name: it is required with the type `tool`", param="tool_choice.name")
        return NamedFunction(choice.name)
    return "required" if choice.type == "any" else "none"


def _items(message: Message, number: int) -> Iterator[InputItem]:
    """Yield a message's texts, calls and results in their order. Raises InvalidRequestError."""
    if isinstance(message.content, str):
        yield InputMessage(message.role, message.content)
        return
    for i, block in enumerate(message.content):
        match block:
            case TextBlock(text=text) if text:
                yield InputMessage(message.role, text)
            case Thought(thinking=text) if text and message.role == "assistant":
                yield Reasoning([ReasoningText(text)])
            case ToolUse():
                check_values(block.input, f"messages[{number}].content[{i}].input")
                arguments = msgspec.json.encode(block.input).decode()
                yield FunctionCall(call_id=block.id, name=block.name, arguments=arguments)
            case ToolResult():
                yield FunctionCallOutput(call_id=block.tool_use_id, output=_result(block))


def _merged(items: Iterable[InputItem]) -> Iterator[InputItem]:
    """Join neighbouring texts of one role to one message: many chat templates require that roles alternate.

    The texts of an answer continue each other.
    """
    for role, group in groupby(items, lambda item: item.role if isinstance(item, InputMessage) else None):
        if role is None:
            yield from group
        else:
            texts = (item.text for item in group if isinstance(item, InputMessage))
            yield InputMessage(role, "".join(texts) if role == "assistant" else _joined(texts))


def _result(block: ToolResult) -> str:
    content = block.content
    if not isinstance(content, str):
        content = _joined(part.text for part in content or () if isinstance(part, TextBlock))
    return f"Error: {content}" if block.is_error else content


def _joined(texts: Iterable[str]) -> str:
    """Return blocks of text as one text, in which each is a paragraph of its own."""
    return "\n\n".join(text for text in texts if text)
