"""Conversion of a response's events to answers of Ollama's API: pieces of a stream, or one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.protocol.events import Completed, Event, Failed, Incomplete, ItemDone, ReasoningDelta, TextDelta
from gateway.protocol.items import Item

Piece = dict[str, Any]


@dataclass(frozen=True)
class Durations:
    """Where the time of an answer went, in seconds."""

    total: float
    """From the arrival of the request to the end of the answer, with the time in the queue."""
    load: float
    """From the choice of an engine until that began with the prompt: loading the model and stored KV."""
    prompt: float
    """From then to the first token."""
    answer: float
    """From the first token to the last."""


class OllamaAnswer:
    """One answer. Pass the events in order to `feed`, or the ended response to `whole`."""

    def __init__(
        self,
        model: str,
        *,
        chat: bool,
        logprobs: bool = False,
        clock: Callable[[], float],
        durations: Callable[[], Durations],
    ) -> None:
        """`model` is the name that the client used; `chat` tells `/api/chat` from `/api/generate`.

        `clock` returns seconds since the epoch. `durations` is called at the end of the answer.
        """
        self._model = model
        self._chat = chat
        self._logprobs = logprobs
        self._clock = clock
        self._durations = durations
        self._calls = 0

    def feed(self, event: Event) -> list[Piece]:
        """Return the pieces for an event."""
        match event:
            case TextDelta():
                return [{**self._piece(event.delta), **self._logprob_body(event.logprobs)}]
            case ReasoningDelta():
                return [self._piece(thinking=event.delta)]
            case ItemDone(item={"type": "function_call"}):
                calls = self._called([event.item])
                return [self._piece(calls=calls)] if calls else []
            case Failed():
                return [{"error": event.response["error"]["message"]}]
            case Completed() | Incomplete():
                return [self._end(self._piece(), event.response)]
        return []

    def whole(self, response: dict[str, Any]) -> Piece:
        """Return the answer to a request without `stream`."""
        parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
        logprobs = [entry for part in parts for entry in part.get("logprobs", ())]
        calls = self._called([item for item in response["output"] if item["type"] == "function_call"])
        thoughts = [part for item in response["output"] if item["type"] == "reasoning" for part in item["content"]]
        thinking, text = ("".join(part["text"] for part in some) for some in (thoughts, parts))
        piece = self._piece(text, thinking, calls)
        return self._end({**piece, **self._logprob_body(logprobs)}, response)

    def loaded(self) -> Piece:
        """Return the answer to a request that only loads the model."""
        return {**self._piece(), "done": True, "done_reason": "load"}

    def _piece(self, text: str = "", thinking: str = "", calls: Sequence[Piece] = ()) -> Piece:
        thought = {"thinking": thinking} if thinking else {}
        called = {"tool_calls": list(calls)} if calls else {}
        message = {"message": {"role": "assistant", "content": text, **thought, **called}}
        return {
            "model": self._model,
            "created_at": timestamp(self._clock()),
            **(message if self._chat else {"response": text, **thought}),
            "done": False,
        }

    def _called(self, items: Sequence[Item]) -> list[Piece]:
        """Return the calls as objects. A call that the token limit cut off has no arguments, and is left out."""
        calls: list[Piece] = []
        for item in items:
            with suppress(msgspec.DecodeError):
                arguments = msgspec.json.decode(item["arguments"], type=dict[str, Any])
                function = {"index": self._calls, "name": item["name"], "arguments": arguments}
                calls.append({"id": item["call_id"], "function": function})
                self._calls += 1
        return calls

    def _logprob_body(self, logprobs: Sequence[Piece]) -> Piece:
        return {"logprobs": list(logprobs)} if self._logprobs and logprobs else {}

    def _end(self, piece: Piece, response: dict[str, Any]) -> Piece:
        """Return the last piece, with token counts and times."""
        usage, took = response["usage"], self._durations()
        cut = (response["incomplete_details"] or {}).get("reason") == "max_output_tokens"
        return {
            **piece,
            "done": True,
            "done_reason": "length" if cut else "stop",
            "total_duration": _nanoseconds(took.total),
            "load_duration": _nanoseconds(took.load),
            "prompt_eval_count": usage["input_tokens"],
            "prompt_eval_duration": _nanoseconds(took.prompt),
            "eval_count": usage["output_tokens"],
            "eval_duration": _nanoseconds(took.answer),
        }


def timestamp(seconds: float) -> str:
    """Return a time in seconds since the epoch in RFC 3339 format."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
