"""Chat completions: requests of stateless clients, converted to requests for responses without stored history."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequestError, UnsupportedParameterError
from gateway.protocol.guided import GuidedParams, guided_format
from gateway.protocol.hints import DEMANDS, Demands, Hints, Neutral
from gateway.protocol.reasoning import Reasoning, ReasoningText
from gateway.protocol.requests import (
    LOGPROBS,
    MAX_ITEMS,
    CallId,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    ResponseCreate,
    TemplateOptions,
    TextOptions,
    check_schemas,
    convert,
)
from gateway.protocol.sampling import SamplingParams
from gateway.protocol.shapes import chat_messages, with_aliases, with_numbers, with_schema, with_tools
from gateway.protocol.tools import (
    MAX_TOOLS,
    AllowedTools,
    AnyFormat,
    ErrorPaths,
    Format,
    FunctionTool,
    GrammarFormat,
    JsonObject,
    JsonSchema,
    NamedFunction,
    TextFormat,
    ToolChoice,
    ToolName,
    requires_call,
)
from gateway.protocol.values import check_stops


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

    id: CallId
    function: CalledFunction


class AssistantMessage(msgspec.Struct, frozen=True, tag_field="role", tag="assistant"):
    """An earlier answer of the model."""

    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    """What the model thought before it; the chat template decides whether the model sees it again."""


class ToolMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """The result of a function call."""

    content: Content
    tool_call_id: CallId


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class ChatTool(msgspec.Struct, frozen=True, tag="function"):
    """A function that the model may call."""

    function: Described


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a function."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Named(msgspec.Struct, frozen=True):
    """A function by its name."""

    name: ToolName


class ChatChoice(msgspec.Struct, frozen=True, tag="function"):
    """The function that the model must call."""

    function: Named


class ChatAllowed(msgspec.Struct, frozen=True, tag="allowed_tools"):
    """The functions, among those of the request, that the model may call, or must call one of."""

    allowed_tools: AllowedFunctions


class AllowedFunctions(msgspec.Struct, frozen=True, kw_only=True):
    """Functions by their names."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChatChoice], Meta(min_length=1, max_length=MAX_TOOLS)]


class SchemaFormat(msgspec.Struct, frozen=True, tag="json_schema"):
    """JSON that conforms to a schema."""

    json_schema: NamedSchema


class NamedSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A schema with its name."""

    name: ToolName
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream carries in addition to the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """No effect."""


MAX_CHOICES: Final = 8
"""Maximum answers to one request."""


class ChatCreate(GuidedParams, frozen=True, kw_only=True):
    """The body of a chat completion request."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_ITEMS)]
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    """Number of answers."""
    tools: Annotated[list[ChatTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChatChoice | ChatAllowed | None = None
    response_format: TextFormat | JsonObject | SchemaFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    continue_final_message: bool | None = None
    """Whether the answer continues the last message; by default it does if that is the assistant's."""
    add_generation_prompt: bool | None = None
    """The opposite of `continue_final_message`, which takes precedence."""


class Stateless(ResponseCreate, frozen=True, kw_only=True, tag="chat.completion"):
    """A request whose response is not stored, since its client sends the whole conversation each time."""

    route: ClassVar[str] = "chat_completions"
    error_paths: ClassVar[ErrorPaths] = ErrorPaths(
        "messages", "tools[{}].function.parameters", "response_format.json_schema.schema"
    )

    needs_calls: ClassVar[bool] = False
    continues: bool = False
    guided: GrammarFormat | None = None
    """The form of the answer that a field of llama-server or vLLM states."""

    @property
    def format(self) -> AnyFormat:
        """The required format of the text."""
        return self.guided or super().format

    @property
    def continues_text(self) -> bool:
        """Whether the answer continues the text of the last message."""
        return self.continues

    @property
    def is_stored(self) -> bool:
        """Always False: stateless clients store their conversations themselves."""
        return False


_NEUTRAL: Final[Neutral] = {
    "parallel_tool_calls": [True, False],
    "service_tier": ["auto", "default"],
    "modalities": [["text"]],
    "function_call": ["auto", "none"],
}
_DEMANDS: Final[Demands] = {
    **DEMANDS,
    "background": "use `/v1/responses`",
    "input": "use `messages`",
    "instructions": "use a message of the role `system`",
    "previous_response_id": "send the whole conversation, or use `/v1/responses`",
    "text": "use `response_format`",
    "max_output_tokens": "use `max_completion_tokens`",
}


def read_chat(raw: dict[str, Any], *, strict_fields: bool = False) -> tuple[Stateless, ChatCreate]:
    """Convert a decoded body; return the request for a response, and the body as a struct.

    With `strict_fields` every field must have an effect. Raises InvalidRequestError or UnsupportedParameterError that
    names the field.
    """
    hints = Hints(strict=strict_fields)
    body = hints.select(with_aliases(raw), ChatCreate, neutral=_NEUTRAL, demands=_DEMANDS)
    chat = convert(_with_shapes(body, hints), ChatCreate)
    _check(chat)
    request = _request(chat, hints)
    if len(request.items) > MAX_ITEMS:
        raise InvalidRequestError(
            f"messages: they contain more than {MAX_ITEMS} texts and calls; drop the oldest", param="messages"
        )
    check_schemas(request)
    return msgspec.structs.replace(request, ignored=hints.ignored), chat


def _with_shapes(body: dict[str, Any], hints: Hints) -> dict[str, Any]:
    """Return the fields in the form that ChatCreate declares, and record what has no effect.

    Raises UnsupportedParameterError.
    """
    body = with_tools(with_numbers(body, ChatCreate), hints)
    if isinstance(count := body.get("n"), int) and count > MAX_CHOICES:
        raise UnsupportedParameterError(f"n: one request has at most {MAX_CHOICES} answers; send several", param="n")
    if isinstance(body.get("messages"), list):
        body["messages"] = chat_messages(body["messages"], hints)
    wanted = body.get("response_format")
    if (named := with_schema(wanted)) is not wanted:
        kind = named.pop("type")
        body["response_format"] = {"type": kind, "json_schema": named}
    if body.get("store") is True:
        hints.add("store")
    options = body.get("stream_options")
    if isinstance(options, dict) and options.get("include_obfuscation") is True:
        hints.add("stream_options.include_obfuscation")
    if options and not body.get("stream"):
        hints.add("stream_options")
    hints.add_unused(body, ChatCreate)
    return body


def _check(chat: ChatCreate) -> None:
    """Check the constraints that the field types do not express."""
    check_stops(chat.stops)
    if chat.top_logprobs and not chat.logprobs:
        raise InvalidRequestError("top_logprobs: it requires `logprobs: true`", param="top_logprobs")


def _continues(chat: ChatCreate, hints: Hints) -> bool:
    """Return whether the answer continues the last message. Raises InvalidRequestError."""
    last, wanted = chat.messages[-1], chat.continue_final_message
    is_open = isinstance(last, AssistantMessage) and not last.tool_calls and bool(_text(last.content).strip())
    is_formed = not isinstance(_format(chat), TextFormat) or requires_call(_choice(chat))
    if wanted is None:
        wanted = is_open and not is_formed and chat.add_generation_prompt is not True
    elif wanted and is_open and is_formed:
        raise InvalidRequestError(
            "continue_final_message: an answer with a required format cannot continue a text; leave out "
            "`response_format` and `tool_choice`",
            param="continue_final_message",
        )
    if chat.continue_final_message and not is_open:
        hints.add("continue_final_message")
    if chat.add_generation_prompt is wanted:  # it says the opposite
        hints.add("add_generation_prompt")
    return wanted and is_open


def _request(chat: ChatCreate, hints: Hints) -> Stateless:
    messages = list(chat.messages)
    continues = _continues(chat, hints)
    last = messages[-1]
    if (
        len(messages) > 1
        and isinstance(last, AssistantMessage)
        and not (_text(last.content).strip() or last.tool_calls)
    ):
        messages.pop()  # an empty answer, in the place of the one that the client expects
    first = messages[0]
    instructions = None
    if isinstance(first, SystemMessage | DeveloperMessage) and len(messages) > 1:
        instructions = _text(messages.pop(0).content)
    shared = {
        name: getattr(chat, name)
        for name in (
            "model", "top_logprobs", "store", "truncation", "chat_template_kwargs", *SamplingParams.__struct_fields__,
        )
    }  # fmt: skip
    return Stateless(
        input=[item for message in messages for item in _items(message)],
        instructions=instructions,
        max_output_tokens=chat.max_completion_tokens or chat.max_tokens,
        tools=[FunctionTool(**msgspec.structs.asdict(tool.function)) for tool in chat.tools or ()],
        tool_choice=_choice(chat),
        text=TextOptions(_format(chat)),
        guided=guided_format(chat),
        include=[LOGPROBS] if chat.logprobs else None,
        continues=continues,
        **shared,
    )


def _items(message: ChatMessage) -> list[InputItem]:
    match message:
        case ToolMessage():
            return [FunctionCallOutput(call_id=message.tool_call_id, output=_text(message.content))]
        case AssistantMessage():
            items: list[InputItem] = []
            if message.reasoning_content:
                items.append(Reasoning([ReasoningText(message.reasoning_content)]))
            if text := _text(message.content):
                items.append(InputMessage("assistant", text))
            items += [
                FunctionCall(call_id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in message.tool_calls or ()
            ]
            has_answer = any(not isinstance(item, Reasoning) for item in items)
            return items if has_answer else [*items, InputMessage("assistant", "")]
        case UserMessage():
            return [InputMessage("user", _text(message.content))]
        case _:
            return [InputMessage("system", _text(message.content))]


def _choice(chat: ChatCreate) -> ToolChoice:
    match chat.tool_choice:
        case ChatChoice(function=function):
            return NamedFunction(function.name)
        case ChatAllowed(allowed_tools=allowed):
            return AllowedTools(allowed.mode, [NamedFunction(tool.function.name) for tool in allowed.tools])
        case choice:
            return choice or "auto"


def _format(chat: ChatCreate) -> Format:
    wanted = chat.response_format
    if isinstance(wanted, SchemaFormat):
        about = wanted.json_schema
        return JsonSchema(
            name=about.name, schema=about.schema or {}, description=about.description, strict=about.strict
        )
    return wanted or TextFormat()


def _text(content: Content | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())
