"""Messages of clients, over the WebSocket or as bodies of HTTP requests, with validation of each field."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from gateway.errors import InvalidJsonError, InvalidRequestError, MessageTooLargeError, UnsupportedParameterError
from gateway.protocol.complaints import plain
from gateway.protocol.hints import DEMANDS, Demands, Hints, Neutral
from gateway.protocol.reasoning import Reasoning
from gateway.protocol.repeated import repeated_fields
from gateway.protocol.sampling import SamplingParams
from gateway.protocol.shapes import input_items, with_aliases, with_numbers, with_schema, with_tools
from gateway.protocol.tools import (
    MAX_TOOLS,
    AnyFormat,
    ErrorPaths,
    Format,
    FunctionTool,
    JsonSchema,
    TextFormat,
    ToolChoice,
    ToolName,
)
from gateway.protocol.unicode_repair import repaired
from gateway.protocol.values import MAX_CONTAINERS, MAX_VALUES, check_stops, check_values, has_many_containers

MAX_MESSAGE: Final = 1 << 20
"""Maximum bytes of one message; the connection stays open if a client sends more."""
MAX_ITEMS: Final = 1024
"""Maximum items of one request's input."""

S = TypeVar("S")

CallId = Annotated[str, Meta(max_length=256)]
"""Id of a function call; some clients leave it empty."""
ItemId = Annotated[str, Meta(min_length=1, max_length=256)]
MAX_ID: Final = 256
"""Maximum characters of a lane's name, and of a response's id in an error."""
LANE: Final = re.compile(rf"^[A-Za-z0-9_.-]{{1,{MAX_ID}}}\Z")
StreamId = Annotated[str, Meta(pattern=LANE.pattern)]


class InputText(msgspec.Struct, frozen=True, tag="input_text"):
    """Text of a user or system message."""

    text: str


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    """Text of the model, sent by a client that stores the history itself."""

    text: str


class InputMessage(msgspec.Struct, frozen=True, tag="message"):
    """One message of the input; the role `developer` means `system`."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | OutputText]

    @property
    def text(self) -> str:
        """The text of all parts."""
        return _joined(self.content)


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True, tag="function_call"):
    """A call that the model made, sent by a client that stores the history itself."""

    call_id: CallId
    name: ToolName
    arguments: str


class FunctionCallOutput(msgspec.Struct, frozen=True, kw_only=True, tag="function_call_output"):
    """The result of a call."""

    call_id: CallId
    output: str | list[InputText]

    @property
    def text(self) -> str:
        """The text of all parts."""
        return _joined(self.output)


class ItemReference(msgspec.Struct, frozen=True, tag="item_reference"):
    """An item of a stored response, by its id."""

    id: ItemId


InputItem = InputMessage | FunctionCall | FunctionCallOutput | ItemReference | Reasoning


class TextOptions(msgspec.Struct, frozen=True):
    """The format of an answer's text; `verbosity` has no effect."""

    format: Format | None = None
    verbosity: str | None = None


class TemplateOptions(msgspec.Struct, frozen=True):
    """Options of the model's chat template."""

    enable_thinking: bool | None = None


class PromptCacheOptions(msgspec.Struct, frozen=True):
    """Options of prompt caching; only encoding ahead is supported."""

    prewarm: bool | None = None


class ResponseCreate(SamplingParams, frozen=True, kw_only=True, tag="response.create"):
    """A request for a response, or with `generate: false` for encoding its context only."""

    input: str | Annotated[list[InputItem], Meta(max_length=MAX_ITEMS)] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    generate: bool | None = None
    background: bool | None = None
    """Whether the response runs on without a connection."""
    prompt_cache_options: PromptCacheOptions | None = None
    stream_id: StreamId | None = None
    return_progress: bool | None = None  # whether `response.in_progress` is repeated during a long prompt
    when_idle: bool | None = None  # whether it waits until no other request runs
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    text: TextOptions | None = None
    include: Annotated[list[str], Meta(max_length=16)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    ignored: tuple[str, ...] = ()
    """Paths of the request's fields that have no effect; set by the gateway."""
    repeated: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields without effect that the response object repeats; set by the gateway."""

    route: ClassVar[str] = "responses"
    """Value of the metrics' label `route`."""
    error_paths: ClassVar[ErrorPaths] = ErrorPaths()
    needs_calls: ClassVar[bool] = True
    """Whether the output of a function requires its call in the conversation."""

    @property
    def continues_text(self) -> bool:
        """Whether the answer continues the text of the last message."""
        return False

    @property
    def thinking(self) -> bool:
        """Whether the chat template asks the model to reason before it answers."""
        return self.chat_template_kwargs is not None and bool(self.chat_template_kwargs.enable_thinking)

    @property
    def is_stored(self) -> bool:
        """Whether the conversation is stored on disk."""
        return self.store is not False

    @property
    def is_ephemeral(self) -> bool:
        """Whether everything, including KV cells, must be removed when the connection ends (`store: false`)."""
        return self.store is False

    @property
    def functions(self) -> list[FunctionTool]:
        """The functions that the model may call."""
        return self.tools or []

    @property
    def choice(self) -> ToolChoice:
        """Whether the model may or must call a function."""
        return self.tool_choice or "auto"

    @property
    def format(self) -> AnyFormat:
        """The required format of the text."""
        return (self.text and self.text.format) or TextFormat()

    @property
    def logprobs(self) -> int | None:
        """Number of alternatives returned with each token's log probability; None for no log probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    @property
    def items(self) -> list[InputItem]:
        """The input as items; a plain string is a user's message."""
        if isinstance(self.input, str):
            return [InputMessage("user", self.input)]
        return [item for item in self.input or () if not isinstance(item, Reasoning) or item.text]

    @property
    def is_reproducible(self) -> bool:
        """Whether nothing but the request may influence the answer's text."""
        return bool(self.reproducible) and not self.encodes_only

    @property
    def encodes_only(self) -> bool:
        """Whether to encode the context only, without an answer."""
        return self.generate is False or (
            self.prompt_cache_options is not None and bool(self.prompt_cache_options.prewarm)
        )


class ResponseCancel(msgspec.Struct, frozen=True, tag="response.cancel"):
    """Cancel a running response on any lane."""

    response_id: str


LOGPROBS: Final = "message.output_text.logprobs"
"""The only value of `include` that has an effect."""


class ResponseResume(msgspec.Struct, frozen=True, kw_only=True, tag="response.resume"):
    """Send the events of a response after number `starting_after`, and continue with new ones."""

    response_id: str
    starting_after: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    stream_id: StreamId | None = None


ClientMessage = ResponseCreate | ResponseCancel | ResponseResume

_NEUTRAL: Final[Neutral] = {
    "stream": [True, False],  # the Python client sends it over a socket too
    "parallel_tool_calls": [True, False],
    "service_tier": ["auto", "default"],
    "stream_options": [{}, {"include_obfuscation": False}],
    "reasoning": [{}],
    "n": [1],
    "modalities": [["text"]],
}
_DEMANDS: Final[Demands] = {
    **DEMANDS,
    "messages": "use `input`",
    "response_format": "use `text.format`",
    "logprobs": "use `include` with `message.output_text.logprobs`",
    "max_tokens": "use `max_output_tokens`",
    "max_completion_tokens": "use `max_output_tokens`",
}
_BY_TYPE: Final[dict[str, type[ClientMessage]]] = {
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "response.resume": ResponseResume,
}


def parse(data: str | bytes, *, strict_fields: bool = False) -> ClientMessage:
    """Decode a frame into a message. Raises ApiError, which does not affect later frames."""
    return read(decode(data), strict_fields=strict_fields)


def decode(data: str | bytes) -> dict[str, Any]:
    """Decode a JSON object. Raises MessageTooLargeError, InvalidJsonError or InvalidRequestError."""
    data = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    check_size(len(data))
    data = repaired(data)
    many = has_many_containers(data)
    try:
        raw = msgspec.json.decode(data, type=msgspec.Raw if many else Any)  # Raw checks it and makes no objects
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidJsonError(f"the message is not valid JSON: {error}") from error
    if many:
        raise InvalidRequestError(f"a message has at most {MAX_CONTAINERS} arrays and objects; shorten it")
    if not isinstance(raw, dict):
        raise InvalidRequestError("a message must be a JSON object")
    return raw


def check_size(size: int) -> None:
    """Raise MessageTooLargeError if `size`, in bytes, is over MAX_MESSAGE."""
    if size > MAX_MESSAGE:
        raise MessageTooLargeError(f"a message of {size} bytes is over the limit of {MAX_MESSAGE}")


def read(raw: dict[str, Any], *, strict_fields: bool = False) -> ClientMessage:
    """Convert a decoded frame to a message; with `strict_fields` every field must have an effect.

    Raises InvalidRequestError or UnsupportedParameterError.
    """
    kind = raw.get("type")
    target = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if target is None:
        raise InvalidRequestError(f"`type` must be one of {', '.join(_BY_TYPE)}, response.steer", param="type")
    hints = Hints(strict=strict_fields)
    if target is not ResponseCreate:
        return convert(with_numbers(hints.select(raw, target, neutral={}, demands={}), target), target)
    body = hints.select(with_aliases(raw), target, neutral=_NEUTRAL, demands=_DEMANDS)
    message = convert(_with_shapes(body, hints), ResponseCreate)
    _check(message)
    return msgspec.structs.replace(message, ignored=hints.ignored, repeated=repeated_fields(raw))


def read_body(raw: dict[str, Any], *, strict_fields: bool = False) -> tuple[ResponseCreate, bool]:
    """Convert a decoded HTTP body; return the request, and whether to stream the response. Raises like `read`."""
    for name in ("type", "stream_id"):
        if raw.get(name) is not None:
            raise UnsupportedParameterError(f"`{name}` is supported only over the WebSocket", param=name)
    stream = raw.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequestError("stream: must be true or false", param="stream")
    message = read({**raw, "type": "response.create"}, strict_fields=strict_fields)
    assert isinstance(message, ResponseCreate)  # noqa: S101 - for the type checker
    return message, stream is True


def convert(body: dict[str, Any], target: type[S], *, strict: bool = True) -> S:
    """Convert decoded fields to a validated struct. Raises InvalidRequestError that names the field."""
    try:
        return msgspec.convert(body, target, str_keys=True, strict=strict)
    except msgspec.ValidationError as error:
        text, _, path = str(error).replace(" - at `key` in `", " of a key - at `").partition(" - at `")
        field = re.search(r"field `(\w+)`", text)
        param = path.removeprefix("$.").rstrip("`") or (field.group(1) if field else None)
        raise InvalidRequestError(f"{param}: {plain(text)}" if param else plain(text), param=param) from error
    except RecursionError as error:
        raise InvalidRequestError("the message is nested too deeply") from error


def check_schemas(request: ResponseCreate) -> None:
    """Reject schemas that are too large, too deep, or have a number that cannot be stored.

    Raises InvalidRequestError that names the place.
    """
    left = MAX_VALUES
    for i, tool in enumerate(request.functions):
        if tool.parameters:
            left -= check_values(tool.parameters, request.error_paths.tool.format(i), most=left)
    if isinstance(request.format, JsonSchema):
        check_values(request.format.schema, request.error_paths.format, most=left)


def _with_shapes(body: dict[str, Any], hints: Hints) -> dict[str, Any]:
    """Return the fields of a request in the form that ResponseCreate declares, and record what has no effect.

    Raises InvalidRequestError or UnsupportedParameterError.
    """
    body = with_tools(with_numbers(body, ResponseCreate), hints)
    if isinstance(body.get("input"), list):
        if len(body["input"]) > MAX_ITEMS:
            raise InvalidRequestError(f"input: a request has at most {MAX_ITEMS} items", param="input")
        body["input"] = input_items(body["input"], hints)
    if isinstance(body.get("include"), list):
        for name in body["include"]:
            if isinstance(name, str) and name != LOGPROBS:
                hints.add(f"include[{name}]", param="include")
    if isinstance(text := body.get("text"), dict):
        body["text"] = {**text, "format": with_schema(text.get("format"))}
        if text.get("verbosity") not in (None, "medium"):
            hints.add("text.verbosity")
    hints.add_unused(body, ResponseCreate)
    return body


def _joined(content: str | Sequence[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _check(request: ResponseCreate) -> None:
    """Check the constraints that the field types do not express."""
    check_schemas(request)
    if request.top_logprobs and request.logprobs is None:
        raise InvalidRequestError(f"top_logprobs: it requires `{LOGPROBS}` in `include`", param="top_logprobs")
    if request.background and request.is_ephemeral:
        raise InvalidRequestError("store: a response in the background must be stored; leave it out", param="store")
    check_stops(request.stops)
    if not request.items and not request.encodes_only and request.previous_response_id is None:
        raise InvalidRequestError("input: it is empty; send at least one item", param="input")
