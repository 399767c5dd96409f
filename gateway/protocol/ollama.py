"""Requests of Ollama's API, converted to the requests that chat completions become."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from gateway.errors import ApiError, InvalidRequestError, UnsupportedParameterError
from gateway.protocol.chat import Stateless, read_chat
from gateway.protocol.hints import Hints
from gateway.protocol.requests import MAX_ITEMS, InputMessage, convert
from gateway.protocol.sampling import SamplingParams
from gateway.protocol.text import TextRequest, read_text
from gateway.protocol.tools import MAX_TOOLS, ErrorPaths

Json = dict[str, Any]

_SAMPLING: Final = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed",
    "reproducible", "stop",
)  # fmt: skip
_OPTIONS: Final = (*_SAMPLING, "num_predict")
"""The options that have an effect. Ollama, too, ignores those that it does not know."""
_INTEGERS: Final = ("top_k", "seed", "num_predict")
_NOTHING: Final[tuple[Any, ...]] = (None, False, "", [])
"""Values with which a field that is not supported asks for nothing."""
_UNLOADS: Final[tuple[Any, ...]] = (0, "0", "0s", "0m", "0h")
"""Values of `keep_alive` that unload the model at once."""
_ANY_TEXT: Final = "Hello"
"""A prompt whose encoding loads the model; it is not answered."""
_NAMES: Final = {
    "response_format.json_schema.schema": "format",
    "response_format": "format",
    "max_completion_tokens": "options.num_predict",
    "max_tokens": "options.num_predict",
    **{name: f"options.{name}" for name in _SAMPLING},
}
"""Fields of chat completions, and the fields of this API that they are converted from."""


class Options(SamplingParams, frozen=True, kw_only=True):
    """Sampling options."""

    num_predict: Annotated[int, Meta(lt=1 << 31)] | None = None
    """Maximum tokens of the answer; below 1: as many as the gateway allows."""


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that both requests for an answer have."""

    model: str | None = None
    stream: bool | None = None
    """Whether to send the answer in pieces, which is the default."""
    format: str | Json | None = None
    options: Options | None = None
    keep_alive: Any = None
    think: bool | str | None = None
    """Whether the model reasons before it answers; some clients send how much."""
    truncate: bool | None = None
    """Whether to drop the oldest messages of a conversation that is too long, which is the default."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """The function of a call."""

    name: str
    arguments: Json | str = {}


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model made."""

    function: CalledFunction
    id: str | None = None


class OllamaMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[Any] | None = None
    thinking: str | None = None
    """The model's reasoning; the chat template decides whether the model sees it again."""
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    """The function whose result the message is."""
    tool_call_id: str | None = None


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a function."""

    name: str
    description: str | None = None
    parameters: Json | None = None


class OllamaTool(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    function: Described


class ChatFields(Fields, frozen=True, kw_only=True):
    """The body of `POST /api/chat`."""

    messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_ITEMS)] | None = None
    tools: Annotated[list[OllamaTool], Meta(max_length=MAX_TOOLS)] | None = None


class GenerateFields(Fields, frozen=True, kw_only=True):
    """The body of `POST /api/generate`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    """Whether the prompt is the model's whole input, without its chat template."""


class OllamaChat(Stateless, frozen=True, kw_only=True, tag="ollama.chat"):
    """The request of `POST /api/chat`."""

    route: ClassVar[str] = "ollama_chat"
    error_paths: ClassVar[ErrorPaths] = ErrorPaths("messages", "tools[{}].function.parameters", "format")


class OllamaGenerate(OllamaChat, frozen=True, kw_only=True, tag="ollama.generate"):
    """The request of `POST /api/generate`."""

    route: ClassVar[str] = "ollama_generate"
    error_paths: ClassVar[ErrorPaths] = ErrorPaths("prompt", format="format")


class OllamaRaw(TextRequest, frozen=True, kw_only=True, tag="ollama.raw"):
    """The request of `POST /api/generate` without a chat template."""

    route: ClassVar[str] = "ollama_generate"


@dataclass(frozen=True)
class Translated:
    """A request as the gateway serves it, and how to answer it."""

    request: OllamaChat | OllamaRaw
    stream: bool
    loads: bool
    """Whether the request has nothing to answer, and only loads the model."""


_REFUSED: Final[Mapping[str, str]] = {
    "images": "the model reads text only",
    "suffix": "the model cannot fill in a text",
    "template": "the model's own template is used",
    "context": "send the conversation to /api/chat",
}
"""Fields that would change the answer, each with advice."""


def read_ollama_chat(raw: Json, *, strict_fields: bool = False, can_think: bool = False) -> Translated:
    """Convert a decoded body of `POST /api/chat`; with `strict_fields` every field must have an effect.

    `can_think` is whether the model can be asked to reason.
    Raises InvalidRequestError or UnsupportedParameterError that names the field.
    """
    hints = Hints(strict=strict_fields)
    body = convert(_selected(raw, ChatFields, hints, can_think=can_think), ChatFields)
    messages = list(body.messages or ())
    tools = [_tool(tool) for tool in body.tools or ()]
    return _translated(OllamaChat, body, hints, _conversation(messages), {"tools": tools} if tools else {})


def read_ollama_generate(raw: Json, *, strict_fields: bool = False, can_think: bool = False) -> Translated:
    """Convert a decoded body of `POST /api/generate`, as `read_ollama_chat` does."""
    hints = Hints(strict=strict_fields)
    body = convert(_selected(raw, GenerateFields, hints, can_think=can_think), GenerateFields)
    if body.raw and body.prompt:
        return _raw(body, body.prompt, hints)
    said = {"system": body.system, "user": body.prompt}
    messages = [{"role": role, "content": text} for role, text in said.items() if text] if body.prompt else []
    return _translated(OllamaGenerate, body, hints, messages, {})


def _selected(raw: Json, target: type[Fields], hints: Hints, *, can_think: bool) -> Json:
    """Return the fields of `raw` that `target` has, and record the others. Raises UnsupportedParameterError."""
    known = {field.encode_name for field in msgspec.structs.fields(target)} - (set() if can_think else {"think"})
    for name, value in raw.items():
        if name in _REFUSED and value not in _NOTHING:
            raise UnsupportedParameterError(f"`{name}` is not supported here; {_REFUSED[name]}", param=name)
        if (name not in known and value not in _NOTHING) or (name == "keep_alive" and value is not None):
            hints.add(name)
    body = {name: value for name, value in raw.items() if name in known}
    if isinstance(body.get("options"), dict):
        body["options"] = _with_numbers(body["options"], hints)
    return body


def _with_numbers(options: Json, hints: Hints) -> Json:
    """Return the options that have an effect, with integers for floats without a fraction, and record the others."""
    result: Json = {}
    for name, value in options.items():
        if name not in _OPTIONS:
            if value is not None:
                hints.add(f"options.{name}")
            continue
        whole = name in _INTEGERS and isinstance(value, float) and value.is_integer()
        number = int(value) if whole else value
        if isinstance(number, int) and number < 0:
            if name == "seed":  # a random seed
                continue
            number = 0 if name == "top_k" else number  # of the whole vocabulary
        result[name] = number
    return result


def _translated(kind: type[OllamaChat], body: Fields, hints: Hints, messages: Sequence[Json], more: Json) -> Translated:
    stream = body.stream is not False
    if not messages:
        if body.keep_alive in _UNLOADS and body.keep_alive is not False:
            raise UnsupportedParameterError(
                "keep_alive: a model is not unloaded on request, but after the seconds of the setting idle_unload",
                param="keep_alive",
            )
        load = kind(
            model=body.model or None,
            input=[InputMessage("user", _ANY_TEXT)],
            generate=False,
            store=False,
            ignored=hints.ignored,
        )
        return Translated(load, stream, loads=True)
    try:
        request, _ = read_chat({**_chat_fields(body), **more, "messages": messages})
    except ApiError as error:
        raise _named(error) from error
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    ignored = tuple(dict.fromkeys((*request.ignored, *hints.ignored)))
    return Translated(kind(**{**fields, "ignored": ignored}), stream, loads=False)


def _raw(body: GenerateFields, prompt: str, hints: Hints) -> Translated:
    """Return the request for the continuation of a raw prompt. Raises UnsupportedParameterError or others."""
    for name in ("system", "format", "think"):
        if getattr(body, name) not in _NOTHING:
            raise UnsupportedParameterError(
                f"{name}: it has no place in a raw prompt; leave out `{name}` or `raw`", param=name
            )
    logprobs = {"logprobs": body.top_logprobs or 0} if body.logprobs else {}
    fields = {"model": body.model or None, "prompt": prompt, **logprobs, **_sampling(body, "max_tokens")}
    try:
        request, _ = read_text(fields)
    except ApiError as error:
        raise _named(error) from error
    own = {name: getattr(request, name) for name in request.__struct_fields__}
    return Translated(OllamaRaw(**{**own, "ignored": hints.ignored}), body.stream is not False, loads=False)


def _sampling(body: Fields, limit: str) -> Json:
    """Return the sampling options, and the maximum tokens of the answer under the name `limit`."""
    options = body.options or Options()
    fields = {name: getattr(options, name) for name in _SAMPLING}
    return {**fields, limit: options.num_predict if (options.num_predict or 0) > 0 else None}


def _chat_fields(body: Fields) -> Json:
    """Return the fields of a chat completion, without its messages and tools. Raises InvalidRequestError."""
    fields = _sampling(body, "max_completion_tokens")
    if body.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(body.format, dict):
        schema = {"name": "format", "schema": body.format}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif body.format:
        raise InvalidRequestError('format: it must be "json" or a JSON schema', param="format")
    wanted = {
        "model": body.model or None,
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs or None,
        "truncation": None if body.truncate is False else "auto",
        "chat_template_kwargs": {"enable_thinking": True} if body.think else None,
    }
    return {name: value for name, value in {**fields, **wanted}.items() if value is not None}


def _named(error: ApiError) -> ApiError:
    """Return the error with this API's name of the field."""
    for name, own in _NAMES.items():
        if error.param is not None and (error.param == name or error.param.startswith((f"{name}.", f"{name}["))):
            error.message = error.message.replace(name, own, 1)
            error.param = error.param.replace(name, own, 1)
            break
    return error


def _conversation(messages: Sequence[OllamaMessage]) -> list[Json]:
    """Return the messages of a chat completion. Raises UnsupportedParameterError for images.

    In Ollama's API a result belongs to the call before it in order, or to the one that `tool_name` names, and most
    clients send no ids.
    """
    result: list[Json] = []
    open_calls: list[tuple[str, str]] = []
    for i, message in enumerate(messages):
        if message.images:
            path = f"messages[{i}].images"
            raise UnsupportedParameterError(f"{path}: {_REFUSED['images']}", param=path)
        said: Json = {"role": message.role, "content": message.content or ""}
        if message.thinking and message.role == "assistant":
            said["reasoning_content"] = message.thinking
        if message.role == "tool":
            said["tool_call_id"] = _answered(message, open_calls) or f"call_{i}"
        elif message.role == "assistant" and message.tool_calls:
            calls = [_call(call, f"call_{i}_{j}") for j, call in enumerate(message.tool_calls)]
            open_calls += [(call["id"], call["function"]["name"]) for call in calls]
            said["tool_calls"] = calls
        result.append(said)
    return result


def _answered(message: OllamaMessage, open_calls: list[tuple[str, str]]) -> str | None:
    """Return the id of the call whose result the message is, and remove the call from `open_calls`."""
    if message.tool_call_id:
        open_calls[:] = [call for call in open_calls if call[0] != message.tool_call_id]
        return message.tool_call_id
    for call in open_calls:
        if message.tool_name in (None, "", call[1]):
            open_calls.remove(call)
            return call[0]
    return None


def _call(call: ToolCall, own_id: str) -> Json:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", "id": call.id or own_id, "function": {"name": call.function.name, "arguments": text}}


def _tool(tool: OllamaTool) -> Json:
    about = msgspec.structs.asdict(tool.function)
    return {"type": "function", "function": {name: value for name, value in about.items() if value is not None}}
