"""Completions of raw prompts, without a chat template: requests, and conversion of events to chunks or one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from gateway.errors import UnsupportedParameterError
from gateway.protocol.events import Completed, Event, Failed, Incomplete, TextDelta
from gateway.protocol.hints import DEMANDS, Demands, Hints, Neutral
from gateway.protocol.requests import LOGPROBS, ResponseCreate, convert
from gateway.protocol.sampling import SamplingParams
from gateway.protocol.shapes import whole_numbers, with_aliases, with_numbers
from gateway.protocol.tools import ErrorPaths
from gateway.protocol.values import check_stops

Chunk = dict[str, Any]
Token = Annotated[int, Meta(ge=0, lt=1 << 31)]
Prompt = str | list[Token]


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream carries in addition to the text."""

    include_usage: bool | None = None


class TextCreate(SamplingParams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request for a completion."""

    prompt: str | list[Token | str | list[Token]]
    """A text, token ids, or a list with one of these."""
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: Literal[False] | None = None


class TextRequest(ResponseCreate, frozen=True, kw_only=True, tag="text_completion"):
    """A request for the continuation of a prompt that no chat template has wrapped."""

    prompt: Prompt
    """Text in which control tokens are recognized, or token ids."""

    route: ClassVar[str] = "completions"
    error_paths: ClassVar[ErrorPaths] = ErrorPaths("prompt")

    @property
    def is_stored(self) -> bool:
        """Always False: a raw prompt belongs to no conversation."""
        return False


_NEUTRAL: Final[Neutral] = {"n": [1], "best_of": [1]}
_DEMANDS: Final[Demands] = {
    **DEMANDS,
    "background": "use `/v1/responses`",
    "messages": "use `/v1/chat/completions`",
    "tools": "use `/v1/chat/completions`",
}


def read_text(raw: dict[str, Any], *, strict_fields: bool = False) -> tuple[TextRequest, TextCreate]:
    """Convert a decoded body; return the request for a response, and the body as a struct.

    With `strict_fields` every field must have an effect. Raises InvalidRequestError or UnsupportedParameterError that
    names the field.
    """
    hints = Hints(strict=strict_fields)
    fields = hints.select(with_aliases(raw), TextCreate, neutral=_NEUTRAL, demands=_DEMANDS)
    fields["prompt"] = whole_numbers(fields.get("prompt"))
    body = convert(with_numbers(fields, TextCreate), TextCreate)
    check_stops(body.stops)
    shared = {name: getattr(body, name) for name in ("model", "store", *SamplingParams.__struct_fields__)}
    request = TextRequest(
        prompt=_single(body.prompt),
        max_output_tokens=body.max_tokens,
        include=None if body.logprobs is None else [LOGPROBS],
        top_logprobs=body.logprobs,
        ignored=hints.ignored,
        **shared,
    )
    return request, body


def _single(prompt: str | list[int | str | list[int]]) -> Prompt:
    """Return the prompt of a request. Raises UnsupportedParameterError if there are several."""
    if isinstance(prompt, str):
        return prompt
    ids = [token for token in prompt if isinstance(token, int)]
    if len(ids) == len(prompt):
        return ids
    if len(prompt) > 1:
        raise UnsupportedParameterError("prompt: several prompts in one request are not supported", param="prompt")
    [only] = prompt
    return [only] if isinstance(only, int) else only


class TextCompletion:
    """One completion. Pass the events in order to `feed`, or the ended response to `whole`."""

    def __init__(
        self, response_id: str, *, created: int, model: str, fingerprint: str, logprobs: bool, usage: bool
    ) -> None:
        """`logprobs` adds log probabilities to the completion, and `usage` adds a last chunk with token counts."""
        self._head = {
            "id": f"cmpl-{response_id.removeprefix('resp_')}",
            "object": "text_completion",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._logprobs = logprobs
        self._usage = usage
        self._offset = 0
        """Characters of the completion so far."""

    def feed(self, event: Event, index: int = 0) -> list[Chunk]:
        """Return the chunks for an event; `index` is 0, since there is one choice."""
        assert index == 0, index  # noqa: S101
        match event:
            case TextDelta():
                return [self._chunk(event.delta, event.logprobs, None)]
            case Failed():
                return [{"error": {"type": "server_error", "param": None, **event.response["error"]}}]
            case Completed() | Incomplete():
                return self._last(event.response)
        return []

    def whole(self, response: dict[str, Any]) -> dict[str, Any]:
        """Return the completion object for a request without `stream`."""
        parts = [part for item in response["output"] for part in item["content"]]
        text = "".join(part["text"] for part in parts)
        logprobs = [entry for part in parts for entry in part.get("logprobs", ())]
        return {**self._chunk(text, logprobs, _reason(response)), "usage": _usage(response)}

    def _last(self, response: dict[str, Any]) -> list[Chunk]:
        chunks = [self._chunk("", (), _reason(response))]
        return [*chunks, {**self._head, "choices": [], "usage": _usage(response)}] if self._usage else chunks

    def _chunk(self, text: str, logprobs: Sequence[dict[str, Any]], reason: str | None) -> Chunk:
        body = self._logprob_body(logprobs) if self._logprobs else None
        return {**self._head, "choices": [{"index": 0, "text": text, "logprobs": body, "finish_reason": reason}]}

    def _logprob_body(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return log probabilities in the format of this API, whose offsets count the completion's characters."""
        offsets = []
        for entry in logprobs:
            offsets.append(self._offset)
            self._offset += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in logprobs],
            "token_logprobs": [entry["logprob"] for entry in logprobs],
            "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in logprobs],
            "text_offset": offsets,
        }


def _reason(response: dict[str, Any]) -> str:
    return "length" if (response["incomplete_details"] or {}).get("reason") == "max_output_tokens" else "stop"


def _usage(response: dict[str, Any]) -> dict[str, Any]:
    usage = response["usage"]
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": {"cached_tokens": usage["input_tokens_details"]["cached_tokens"]},
    }
