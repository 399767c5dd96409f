"""Conversion of a response's events to chat completions: chunks of a stream, or one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.protocol.events import (
    ArgumentsDelta,
    Completed,
    Event,
    Failed,
    Incomplete,
    ItemAdded,
    ReasoningDelta,
    TextDelta,
)

Chunk = dict[str, Any]


class Completion:
    """One completion. Pass the events of each choice in order to `feed`, or the ended responses to `whole`."""

    def __init__(
        self,
        response_id: str,
        *,
        created: int,
        model: str,
        fingerprint: str,
        logprobs: bool,
        usage: bool,
        count: int = 1,
    ) -> None:
        """`logprobs` adds log probabilities to the completion, and `usage` adds a last chunk with token counts.

        `count` is the number of choices.
        """
        self._head = {
            "id": f"chatcmpl-{response_id.removeprefix('resp_')}",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._logprobs = logprobs
        self._usage = usage
        self._count = count
        self._calls = [-1] * count
        """Index of the latest function call of each choice."""
        self._started: set[int] = set()
        self._ended: list[dict[str, Any]] = []
        """Responses of the choices that have ended."""

    def feed(self, event: Event, index: int = 0) -> list[Chunk]:
        """Return the chunks for an event of the choice number `index`."""
        match event:
            case TextDelta():
                return self._chunks(index, {"content": event.delta}, logprobs=event.logprobs)
            case ReasoningDelta():
                return self._chunks(index, {"reasoning_content": event.delta})
            case ItemAdded(item={"type": "function_call", "call_id": call_id, "name": name}):
                self._calls[index] += 1
                return self._call(index, id=call_id, type="function", function={"name": name, "arguments": ""})
            case ArgumentsDelta():
                return self._call(index, function={"arguments": event.delta})
            case Failed():
                return [{"error": {"type": "server_error", "param": None, **event.response["error"]}}]
            case Completed() | Incomplete():
                return self._last(index, event.response)
        return []

    def whole(self, *responses: dict[str, Any]) -> dict[str, Any]:
        """Return the completion object for a request without `stream`, from the response of each choice."""
        choices = [self._choice(index, response) for index, response in enumerate(responses)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": _usage(responses)}

    def _choice(self, index: int, response: dict[str, Any]) -> dict[str, Any]:
        texts, logprobs, calls, thoughts = [], [], [], []
        for item in response["output"]:
            if item["type"] == "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                calls.append({"id": item["call_id"], "type": "function", "function": function})
            elif item["type"] == "reasoning":
                thoughts += [part["text"] for part in item["content"]]
            else:
                texts += [part["text"] for part in item["content"]]
                logprobs += [entry for part in item["content"] for entry in part.get("logprobs", ())]
        text = "".join(texts)
        message = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        return {
            "index": index,
            "message": {**message, "tool_calls": calls} if calls else message,
            "logprobs": self._logprob_body(logprobs),
            "finish_reason": _reason(response),
        }

    def _call(self, index: int, **fields: Any) -> list[Chunk]:
        return self._chunks(index, {"tool_calls": [{"index": self._calls[index], **fields}]})

    def _last(self, index: int, response: dict[str, Any]) -> list[Chunk]:
        chunks = self._chunks(index, {}, reason=_reason(response))
        self._ended.append(response)
        if self._usage and len(self._ended) == self._count:
            usage = _usage(self._ended)
            chunks.append({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        return chunks

    def _chunks(
        self, index: int, delta: dict[str, Any], *, logprobs: Sequence[dict[str, Any]] = (), reason: str | None = None
    ) -> list[Chunk]:
        chunks = [self._chunk(index, delta, logprobs, reason)]
        if index not in self._started:
            self._started.add(index)
            chunks.insert(0, self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, (), None))
        return chunks

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[dict[str, Any]], reason: str | None
    ) -> Chunk:
        choice = {"index": index, "delta": delta, "logprobs": self._logprob_body(logprobs), "finish_reason": reason}
        usage = {"usage": None} if self._usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}

    def _logprob_body(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": list(logprobs), "refusal": None} if self._logprobs else None


def _reason(response: dict[str, Any]) -> str:
    if (response["incomplete_details"] or {}).get("reason") == "max_output_tokens":
        return "length"
    calls = any(item["type"] == "function_call" for item in response["output"])
    return "tool_calls" if calls else "stop"


def _usage(responses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the token counts of all choices: their prompt counts once, as for the choice that computed it."""
    usages = [response["usage"] for response in responses]
    prompt, answers = usages[0]["input_tokens"], sum(usage["output_tokens"] for usage in usages)
    reasoning = sum(usage["output_tokens_details"]["reasoning_tokens"] for usage in usages)
    details = {"cached_tokens": min(usage["input_tokens_details"]["cached_tokens"] for usage in usages)}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
