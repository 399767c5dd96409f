"""Chat completions: requests of stateless clients, converted to requests for responses without stored history."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequestError
from gateway.protocol.guided import GuidedParams, guided_format
from gateway.protocol.requests import (
    LOGPROBS,
    MAX_ITEMS,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    Key256,
    Neutral,
    ResponseCreate,
    TextOptions,
    check_schemas,
    convert,
    supported,
)
from gateway.protocol.tools import (
    MAX_TOOLS,
    AnyFormat,
    ErrorPaths,
    Format,
    FunctionTool,
    GrammarFormat,
    JsonObject,
    JsonSchema,
    NamedFunction,
    TextFormat,
    ToolName,
)


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A piece of text."""

    text: str


Content = str | list[TextPart]


class SystemMessage(msgspec.Struct, frozen=True, tag_field="role", tag="system"):
    """Instructions for the model."""

    content: Content


class DeveloperMessage(msgspec.Struct, frozen=True, tag_field="role", tag="developer"):
    """The same as a system message."""

    content: Content


class UserMessage(msgspec.Struct, frozen=True, tag_field="role", tag="user"):
    """A message from the user."""

    content: Content


class CalledFunction(msgspec.Struct, frozen=True):
    """The function of a call."""

    name: ToolName
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """A call that the model made."""

    id: Key256
    function: CalledFunction


class AssistantMessage(msgspec.Struct, frozen=True, tag_field="role", tag="assistant"):
    """An earlier answer of the model."""

    content: Content | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """The result of a function call."""

    content: Content
    tool_call_id: Key256


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class ChatTool(msgspec.Struct, frozen=True, tag="function", forbid_unknown_fields=True):
    """A function that the model may call."""

    function: Described


class Described(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The description of a function."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function by its name."""

    name: ToolName


class ChatChoice(msgspec.Struct, frozen=True, tag="function", forbid_unknown_fields=True):
    """The function that the model must call."""

    function: Named


class JsonFormat(msgspec.Struct, frozen=True, tag="json_object", forbid_unknown_fields=True):
    """A JSON object; with llama-server's `schema`, JSON that conforms to it."""

    schema: dict[str, Any] | None = None


class SchemaFormat(msgspec.Struct, frozen=True, tag="json_schema", forbid_unknown_fields=True):
    """JSON that conforms to a schema."""

    json_schema: NamedSchema


class NamedSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schema with its name."""

    name: ToolName
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream carries in addition to the answer."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatCreate(GuidedParams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a chat completion request."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_ITEMS)]
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    tools: Annotated[list[ChatTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChatChoice | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: Literal[False] | None = None
    user: str | None = None
    """The client's own identifier of its user; ignored."""


class Stateless(ResponseCreate, frozen=True, kw_only=True, tag="chat.completion"):
    """A request whose response is not stored, since its client sends the whole conversation each time."""

    route: ClassVar[str] = "chat_completions"
    error_paths: ClassVar[ErrorPaths] = ErrorPaths(
        "messages", "tools[{}].function.parameters", "response_format.json_schema.schema"
    )

    guided: GrammarFormat | None = None
    """The form of the answer that a field of llama-server or vLLM states."""

    @property
    def format(self) -> AnyFormat:
        """The required format of the text."""
        return self.guided or super().format

    @property
    def is_stored(self) -> bool:
        """Always False: stateless clients store their conversations themselves."""
        return False


_NEUTRAL: Final[Neutral] = {
    "n": [1],
    "parallel_tool_calls": [True, False],
    "service_tier": ["auto", "default"],
    "modalities": [["text"]],
    "functions": [[]],
    "function_call": ["auto", "none"],
}


def read_chat(raw: dict[str, Any]) -> tuple[Stateless, ChatCreate]:
    """Convert a decoded body; return the request for a response, and the body as a struct.

    Raises InvalidRequestError or UnsupportedParameterError that names the field.
    """
    chat = convert(supported(raw, ChatCreate, _NEUTRAL), ChatCreate)
    _check(chat)
    request = _request(chat)
    if len(request.items) > MAX_ITEMS:
        raise InvalidRequestError(
            f"messages: they contain more than {MAX_ITEMS} texts and calls; drop the oldest", param="messages"
        )
    check_schemas(request)
    return request, chat


def _check(chat: ChatCreate) -> None:
    """Check the constraints that the field types do not express."""
    if not all(chat.stops):
        raise InvalidRequestError("stop: a stop string must not be empty", param="stop")
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidRequestError("top_logprobs: it requires `logprobs: true`", param="top_logprobs")
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequestError("stream_options: it requires `stream: true`", param="stream_options")


def _request(chat: ChatCreate) -> Stateless:
    messages = list(chat.messages)
    first = messages[0]
    instructions = None
    if isinstance(first, SystemMessage | DeveloperMessage) and len(messages) > 1:
        instructions = _text(messages.pop(0).content)
    shared = {
        name: getattr(chat, name)
        for name in (
            "model", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
            "repeat_penalty", "seed", "stop", "logit_bias", "metadata", "top_logprobs", "store",
        )
    }  # fmt: skip
    return Stateless(
        input=[item for message in messages for item in _items(message)],
        instructions=instructions,
        max_output_tokens=chat.max_completion_tokens or chat.max_tokens,
        tools=[FunctionTool(**msgspec.structs.asdict(tool.function)) for tool in chat.tools or ()],
        tool_choice=NamedFunction(chat.tool_choice.function.name)
        if isinstance(chat.tool_choice, ChatChoice)
        else chat.tool_choice,
        text=TextOptions(_format(chat)),
        guided=guided_format(chat),
        include=[LOGPROBS] if chat.logprobs else None,
        **shared,
    )


def _items(message: ChatMessage) -> list[InputItem]:
    match message:
        case ToolMessage():
            return [FunctionCallOutput(call_id=message.tool_call_id, output=_text(message.content))]
        case AssistantMessage():
            items: list[InputItem] = []
            if text := _text(message.content):
                items.append(InputMessage("assistant", text))
            items += [
                FunctionCall(call_id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in message.tool_calls or ()
            ]
            return items or [InputMessage("assistant", "")]
        case UserMessage():
            return [InputMessage("user", _text(message.content))]
        case _:
            return [InputMessage("system", _text(message.content))]


def _format(chat: ChatCreate) -> Format:
    wanted = chat.response_format
    if isinstance(wanted, JsonFormat):
        return JsonObject() if wanted.schema is None else JsonSchema(name="answer", schema=wanted.schema)
    if isinstance(wanted, SchemaFormat):
        about = wanted.json_schema
        return JsonSchema(
            name=about.name, schema=about.schema or {}, description=about.description, strict=about.strict
        )
    return wanted or TextFormat()


def _text(content: Content | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())
