"""Display of one answer while its events arrive, and token counts and times over all answers of a chat."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.cli.language import Phrases
from gateway.cli.screen import PlainText, Screen, plain

CONVERSATION_OVER: Final = ("context_length_exceeded", "previous_response_not_found")
"""Error codes after which the conversation cannot continue."""


@dataclass
class Tally:
    """Tokens and times of one answer, or the sum over many."""

    answers: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    steps: int = 0
    """Tokens after each answer's first token: those generated within `seconds`."""
    seconds: float = 0.0
    """Seconds from each answer's first token to its last one."""
    first: float = 0.0
    """Seconds from the question to the first text."""

    def add(self, other: Tally) -> None:
        """Add the counts and times of `other`."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def figures(self) -> dict[str, object]:
        """Return the values for the fields of the statistics texts."""
        rate = f"{self.steps / self.seconds:.1f}" if self.steps and self.seconds else "–"
        first = f"{self.first / self.answers:.2f}" if self.first else "–"
        return {**vars(self), "rate": rate, "first": first}


REASONS: Final = ("interrupted", "steered")
"""Reasons of an incomplete answer that have a text."""


class Answer:
    """Shows an answer while it arrives. `end` is how it ended, "" until then."""

    def __init__(self, screen: Screen, say: Phrases, clock: Callable[[], float] = time.monotonic) -> None:
        """Start timing: the question is sent now."""
        self._screen = screen
        self._say = say
        self._clock = clock
        self._asked = clock()
        self._first: float | None = None
        self._plain = PlainText()
        self._thoughts = PlainText()
        self._shown = ""
        self.id = ""
        """The response's id; "" until the first event that has it."""
        self.end = ""
        self.tally = Tally()

    @property
    def started(self) -> bool:
        """Whether any text of the answer has arrived."""
        return self._first is not None

    def handle(self, event: dict[str, Any]) -> None:
        """Process the next event. Events with nothing to show are ignored."""
        response = event.get("response") or {}
        match event.get("type"):
            case "response.created":
                self.id = str(response.get("id", ""))
            case "response.queued":
                self._screen.waiting(self._queued(event))
            case "response.in_progress":
                self._screen.status(self._say("thinking"))
            case "response.output_text.delta":
                self._first = self._first or self._clock()
                self._show(self._plain.feed(str(event.get("delta", ""))))
            case "response.reasoning_text.delta":
                self._first = self._first or self._clock()
                self._screen.thought(self._thoughts.feed(str(event.get("delta", ""))))
            case "response.reasoning_text.done":
                self._screen.thought(f"{self._thoughts.finish()}\n\n")
            case "response.completed" | "response.incomplete":
                self._finish(response)
            case "response.failed":
                self.fail("failed", response.get("error") or {})
            case "error":
                self._refused(event.get("error") or {})

    def fail(self, end: str, error: dict[str, Any]) -> None:
        """End the answer with an error; `error` has a code and a message."""
        self._show(self._plain.finish())
        self._new_line()
        code = plain(str(error.get("code") or error.get("type") or "error"))
        remedy = self._say("start_new") if code in CONVERSATION_OVER else ""
        self._screen.error(f"{code}: {plain(str(error.get('message', '')))}{remedy}")
        self.end = end

    def _queued(self, event: dict[str, Any]) -> str:
        seconds = event.get("estimated_wait_seconds")
        about = self._say("about", seconds=round(seconds)) if isinstance(seconds, int | float) and seconds >= 1 else ""
        return self._say("queued", position=event.get("queue_position", "?")) + about

    def _refused(self, error: dict[str, Any]) -> None:
        if error.get("param") != "response_id":  # the cancel arrived after the end of the answer: harmless
            self.fail("refused", error)

    def _finish(self, response: dict[str, Any]) -> None:
        self._show(self._plain.finish())
        self._new_line()
        reason = str((response.get("incomplete_details") or {}).get("reason", ""))
        if reason in ("cancelled", "max_output_tokens"):
            self._screen.note(self._say(reason))
        elif reason:
            self._screen.note(self._say("incomplete", reason=self._reason(reason)))
        elif not self._shown:
            self._screen.note(self._say("empty"))
        self._count(response.get("usage") or {})
        self.id = str(response.get("id") or self.id)
        self.end = "stored"

    def _reason(self, reason: str) -> str:
        return self._say(f"reason_{reason}") if reason in REASONS else plain(reason)

    def _count(self, usage: dict[str, Any]) -> None:
        output = int(usage.get("output_tokens") or 0)
        details = usage.get("input_tokens_details") or {}
        self.tally = Tally(1, int(usage.get("input_tokens") or 0), int(details.get("cached_tokens") or 0), output)
        if self._first is not None:
            self.tally.first = self._first - self._asked
            self.tally.steps, self.tally.seconds = max(output - 1, 0), self._clock() - self._first

    def _show(self, text: str) -> None:
        self._screen.text(text)
        self._shown = text or self._shown

    def _new_line(self) -> None:
        if self._shown and not self._shown.endswith("\n"):
            self._screen.text("\n")
