"""One response as the events of the contract, in the only order they may come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.errors import ApiError
from gateway.protocol.requests import ResponseCreate

Event = dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens of one turn; `cached` of the prompt's were not computed again."""

    input: int
    cached: int
    output: int

    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input + self.output,
        }


class ResponseEvents:
    """Numbers and shapes the events of one text answer.

    `response_id` and `message_id` are `resp_` and `msg_` ids; `created_at` is in seconds of the epoch; `temperature`
    and `top_p` are the values in force.
    """

    def __init__(
        self,
        request: ResponseCreate,
        *,
        response_id: str,
        message_id: str,
        model: str,
        created_at: int,
        temperature: float,
        top_p: float,
        max_output_tokens: int,
    ) -> None:
        """Begin with nothing sent."""
        self._sequence = -1
        self._text: list[str] = []
        self._message_id = message_id
        self._open = False
        self._response: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": created_at,
            "status": "queued",
            "model": model,
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "metadata": request.metadata or {},
            "temperature": temperature,
            "top_p": top_p,
            "access_programs": None,
            "max_output_tokens": max_output_tokens,
            "previous_response_id": request.previous_response_id,
            "store": request.store is not False,
            "truncation": request.truncation or "disabled",
            "usage": None,
        }

    @property
    def text(self) -> str:
        """All of the answer so far."""
        return "".join(self._text)

    def created(self) -> Event:
        """The request is taken; its id is known from here on."""
        return self._about("response.created", "in_progress")

    def queued(self, position: int, seconds: float) -> Event:
        """It waits: `position` 1 is next, for about `seconds`."""
        extra = {"queue_position": position, "estimated_wait_seconds": round(seconds, 1)}
        return {**self._about("response.queued", "queued"), **extra}

    def in_progress(self) -> list[Event]:
        """An engine has it: the answer's item and its text part begin."""
        self._open = True
        item = self._item("in_progress", [])
        return [
            self._about("response.in_progress", "in_progress"),
            self._event("response.output_item.added", output_index=0, item=item),
            self._part("response.content_part.added", part=_text_part("")),
        ]

    def delta(self, text: str) -> Event:
        """More of the answer."""
        self._text.append(text)
        return self._part("response.output_text.delta", delta=text, logprobs=[])

    def completed(self, usage: Usage) -> list[Event]:
        """The model ended its answer."""
        return self._ended("response.completed", "completed", usage)

    def incomplete(self, usage: Usage, reason: str) -> list[Event]:
        """The answer was ended for `reason`: max_output_tokens or cancelled."""
        self._response["incomplete_details"] = {"reason": reason}
        return self._ended("response.incomplete", "cancelled" if reason == "cancelled" else "incomplete", usage)

    def failed(self, error: ApiError) -> list[Event]:
        """It was taken, and cannot be answered."""
        self._response["error"] = {"code": error.code, "message": error.message}
        return [self._about("response.failed", "failed")]

    def _ended(self, kind: str, status: str, usage: Usage) -> list[Event]:
        self._response["usage"] = usage.body()
        events = []
        if self._open:
            part = _text_part(self.text)
            item = self._item("completed" if status == "completed" else "incomplete", [part])
            self._response["output"] = [item]
            events = [
                self._part("response.output_text.done", text=self.text, logprobs=[]),
                self._part("response.content_part.done", part=part),
                self._event("response.output_item.done", output_index=0, item=item),
            ]
        return [*events, self._about(kind, status)]

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _about(self, kind: str, status: str) -> Event:
        self._response["status"] = status
        return self._event(kind, response=dict(self._response))

    def _part(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self._message_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence, **fields}


def refusal(error: ApiError, *, response_id: str | None = None) -> Event:
    """The `error` event of a request that was not taken."""
    event = {"type": "error", "status": error.status, "error": error.body()}
    return event if response_id is None else {**event, "response_id": response_id}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}
