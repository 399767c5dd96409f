"""Messages of clients, over the WebSocket or as bodies of HTTP requests, with validation of each field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from gateway.errors import InvalidJsonError, InvalidRequestError, MessageTooLargeError, UnsupportedParameterError
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
from gateway.protocol.values import MAX_CONTAINERS, MAX_VALUES, check_values, has_many_containers

MAX_MESSAGE: Final = 1 << 20
"""Maximum bytes of one message; the connection stays open if a client sends more."""
MAX_ITEMS: Final = 1024
"""Maximum items of one request's input."""

S = TypeVar("S")

Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Text512 = Annotated[str, Meta(max_length=512)]
Key256 = Annotated[str, Meta(min_length=1, max_length=256)]
StopString = Annotated[str, Meta(max_length=1024)]
"""A stop string; its length is limited because each piece of an answer is compared with its prefixes."""
Key64 = Annotated[str, Meta(max_length=64)]
MAX_ID: Final = 256
"""Maximum characters of a lane's name, and of a response's id in an error."""
LANE: Final = re.compile(rf"^[A-Za-z0-9_.-]{{1,{MAX_ID}}}\Z")
StreamId = Annotated[str, Meta(pattern=LANE.pattern)]


class InputText(msgspec.Struct, frozen=True, tag="input_text", forbid_unknown_fields=True):
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

    call_id: Key256
    name: ToolName
    arguments: str


class FunctionCallOutput(msgspec.Struct, frozen=True, kw_only=True, tag="function_call_output"):
    """The result of a call."""

    call_id: Key256
    output: str | list[InputText]

    @property
    def text(self) -> str:
        """The text of all parts."""
        return _joined(self.output)


InputItem = InputMessage | FunctionCall | FunctionCallOutput


class TextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The format of an answer's text."""

    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class PromptCacheOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of prompt caching; only encoding ahead is supported."""

    prewarm: bool | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling and stop parameters, shared by all APIs."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=2)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    logit_bias: Annotated[dict[int, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    metadata: Annotated[dict[Key64, Text512], Meta(max_length=16)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ResponseCreate(SamplingParams, frozen=True, kw_only=True, tag="response.create", forbid_unknown_fields=True):
    """A request for a response, or with `generate: false` for encoding its context only."""

    input: str | Annotated[list[InputItem], Meta(max_length=MAX_ITEMS)] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    generate: bool | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    stream_id: StreamId | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    text: TextOptions | None = None
    include: Annotated[list[str], Meta(max_length=16)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    route: ClassVar[str] = "responses"
    """Value of the metrics' label `route`."""
    error_paths: ClassVar[ErrorPaths] = ErrorPaths()

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
        return [InputMessage("user", self.input)] if isinstance(self.input, str) else list(self.input or ())

    @property
    def encodes_only(self) -> bool:
        """Whether to encode the context only, without an answer."""
        return self.generate is False or (
            self.prompt_cache_options is not None and bool(self.prompt_cache_options.prewarm)
        )


class ResponseCancel(msgspec.Struct, frozen=True, tag="response.cancel", forbid_unknown_fields=True):
    """Cancel a running response on any lane."""

    response_id: str


LOGPROBS: Final = "message.output_text.logprobs"
"""The only supported value of `include`."""


class ResponseResume(msgspec.Struct, frozen=True, kw_only=True, tag="response.resume", forbid_unknown_fields=True):
    """Send the events of a response after number `starting_after`, and continue with new ones."""

    response_id: str
    starting_after: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    stream_id: StreamId | None = None


ClientMessage = ResponseCreate | ResponseCancel | ResponseResume

Neutral = Mapping[str, Sequence[Any]]
"""Unsupported fields that clients send with values that request nothing, by field."""
_NEUTRAL: Final[Neutral] = {
    "stream": [True, False],  # the Python client sends it over a socket too
    "background": [False],
    "parallel_tool_calls": [True, False],
    "service_tier": ["auto", "default"],
    "stream_options": [{}, {"include_obfuscation": False}],
}
_BY_TYPE: Final[dict[str, type[ClientMessage]]] = {
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "response.resume": ResponseResume,
}


def parse(data: str | bytes) -> ClientMessage:
    """Decode a frame into a message. Raises ApiError, which does not affect later frames."""
    return read(decode(data))


def decode(data: str | bytes) -> dict[str, Any]:
    """Decode a JSON object. Raises MessageTooLargeError, InvalidJsonError or InvalidRequestError."""
    check_size(len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "surrogatepass")))
    many = has_many_containers(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
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


def read(raw: dict[str, Any]) -> ClientMessage:
    """Convert a decoded frame to a message. Raises InvalidRequestError or UnsupportedParameterError."""
    kind = raw.get("type")
    target = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if target is None:
        raise InvalidRequestError(f"`type` must be one of {', '.join(_BY_TYPE)}, response.steer", param="type")
    body = supported(raw, target, _NEUTRAL)
    for tool in body["tools"] if isinstance(body.get("tools"), list) else ():
        if isinstance(tool, dict) and isinstance(tool.get("type"), str) and tool["type"] != "function":
            raise UnsupportedParameterError(f"tools: `{tool['type'][:64]}` is not supported here", param="tools")
    if isinstance(body.get("input"), list):
        if len(body["input"]) > MAX_ITEMS:
            raise InvalidRequestError(f"input: a request has at most {MAX_ITEMS} items", param="input")
        body["input"] = [_with_type(item) for item in body["input"]]
    message = convert(body, target)
    if isinstance(message, ResponseCreate):
        _check(message)
    return message


def read_body(raw: dict[str, Any]) -> tuple[ResponseCreate, bool]:
    """Convert a decoded HTTP body; return the request, and whether to stream the response. Raises like `read`."""
    for name in ("type", "stream_id"):
        if raw.get(name) is not None:
            raise UnsupportedParameterError(f"`{name}` is supported only over the WebSocket", param=name)
    stream = raw.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequestError("stream: must be true or false", param="stream")
    message = read({**raw, "type": "response.create"})
    assert isinstance(message, ResponseCreate)  # noqa: S101 - for the type checker
    return message, stream is True


def supported(raw: Mapping[str, Any], target: type[msgspec.Struct], neutral: Neutral) -> dict[str, Any]:
    """Return the fields of `raw` that `target` has, including its tag; drop others whose values request nothing.

    Raises UnsupportedParameterError that names the field.
    """
    known = {*(field.encode_name for field in msgspec.structs.fields(target)), target.__struct_config__.tag_field}
    for name, value in raw.items():
        if name not in known and value is not None and value not in neutral.get(name, []):
            raise UnsupportedParameterError(f"`{name}` is not supported here", param=name)
    return {name: value for name, value in raw.items() if name in known}


def convert(body: dict[str, Any], target: type[S], *, strict: bool = True) -> S:
    """Convert decoded fields to a validated struct. Raises InvalidRequestError that names the field."""
    try:
        return msgspec.convert(body, target, str_keys=True, strict=strict)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        field = re.search(r"field `(\w+)`", text)
        param = path.removeprefix("$.").rstrip("`") or (field.group(1) if field else None)
        raise InvalidRequestError(f"{param}: {text}" if param else text, param=param) from error
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


def _with_type(item: Any) -> Any:
    """Return an item of the input, with type message if it has none."""
    return {**item, "type": "message"} if isinstance(item, dict) and item.get("type") is None else item


def _joined(content: str | Sequence[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _check(request: ResponseCreate) -> None:
    """Check the constraints that the field types do not express."""
    check_schemas(request)
    if unknown := next((name for name in request.include or () if name != LOGPROBS), None):
        raise UnsupportedParameterError(f"include: `{unknown}` is not supported here", param="include")
    if request.top_logprobs is not None and request.logprobs is None:
        raise InvalidRequestError(f"top_logprobs: it requires `{LOGPROBS}` in `include`", param="top_logprobs")
    if not all(request.stops):
        raise InvalidRequestError("stop: a stop string must not be empty", param="stop")
    if not request.items and not request.encodes_only and request.previous_response_id is None:
        raise InvalidRequestError("input: it is empty; send at least one item", param="input")
