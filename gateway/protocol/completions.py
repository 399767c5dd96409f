"""Conversion of a response's events to chat completions: chunks of a stream, or one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.protocol.events import ArgumentsDelta, Completed, Event, Failed, Incomplete, ItemAdded, TextDelta

Chunk = dict[str, Any]

_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")


class Completion:
    """One completion. Pass the events in order to `feed`, or the ended response to `whole`."""

    def __init__(
        self, response_id: str, *, created: int, model: str, fingerprint: str, logprobs: bool, usage: bool
    ) -> None:
        """`logprobs` adds log probabilities to the completion, and `usage` adds a last chunk with token counts."""
        self._head = {
            "id": f"chatcmpl-{response_id.removeprefix('resp_')}",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._logprobs = logprobs
        self._usage = usage
        self._calls = -1
        self._started = False

    def feed(self, event: Event) -> list[Chunk]:
        """Return the chunks for an event."""
        match event:
            case TextDelta():
                return self._chunks({"content": event.delta}, logprobs=event.logprobs)
            case ItemAdded(item={"type": "function_call", "call_id": call_id, "name": name}):
                self._calls += 1
                return self._call(id=call_id, type="function", function={"name": name, "arguments": ""})
            case ArgumentsDelta():
                return self._call(function={"arguments": event.delta})
            case Failed():
                return [{"error": {"type": "server_error", "param": None, **event.response["error"]}}]
            case Completed() | Incomplete():
                return self._last(event.response)
        return []

    def whole(self, response: dict[str, Any]) -> dict[str, Any]:
        """Return the completion object for a request without `stream`."""
        texts, logprobs, calls = [], [], []
        for item in response["output"]:
            if item["type"] == "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                calls.append({"id": item["call_id"], "type": "function", "function": function})
            else:
                texts += [part["text"] for part in item["content"]]
                logprobs += [entry for part in item["content"] for entry in part.get("logprobs", ())]
        text = "".join(texts)
        message = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        choice = {
            "index": 0,
            "message": {**message, "tool_calls": calls} if calls else message,
            "logprobs": self._logprob_body(logprobs),
            "finish_reason": _reason(response),
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": _usage(response)}

    def _call(self, **fields: Any) -> list[Chunk]:
        return self._chunks({"tool_calls": [{"index": self._calls, **fields}]})

    def _last(self, response: dict[str, Any]) -> list[Chunk]:
        chunks = self._chunks({}, reason=_reason(response))
        if self._usage:
            chunks.append({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(response)})
        return chunks

    def _chunks(
        self, delta: dict[str, Any], *, logprobs: Sequence[dict[str, Any]] = (), reason: str | None = None
    ) -> list[Chunk]:
        started, self._started = self._started, True
        first = [] if started else [self._chunk({"role": "assistant", "content": "", "refusal": None}, (), None)]
        return [*first, self._chunk(delta, logprobs, reason)]

    def _chunk(self, delta: dict[str, Any], logprobs: Sequence[dict[str, Any]], reason: str | None) -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": self._logprob_body(logprobs), "finish_reason": reason}
        usage = {"usage": None} if self._usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}

    def _logprob_body(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": list(logprobs), "refusal": None} if self._logprobs else None


def _reason(response: dict[str, Any]) -> str:
    if (response["incomplete_details"] or {}).get("reason") == "max_output_tokens":
        return "length"
    calls = any(item["type"] == "function_call" for item in response["output"])
    return "tool_calls" if calls else "stop"


def _usage(response: dict[str, Any]) -> dict[str, Any]:
    usage = response["usage"]
    tokens = (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"])
    details = {"cached_tokens": usage["input_tokens_details"]["cached_tokens"]}
    return {**dict(zip(_USAGE, tokens, strict=True)), "prompt_tokens_details": details}
