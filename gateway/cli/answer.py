"""One answer as its events arrive, and what all answers of a chat took together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.cli.language import Phrases
from gateway.cli.screen import PlainText, Screen, plain

START_ANEW: Final = ("context_length_exceeded", "previous_response_not_found")
"""Errors after which this conversation can't go on."""


@dataclass
class Tally:
    """Tokens and times of one answer, or the sum over many."""

    answers: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    steps: int = 0
    """Tokens after each answer's first: what `seconds` were needed for."""
    seconds: float = 0.0
    """From first tokens to last ones."""
    first: float = 0.0
    """Seconds from question to first text."""

    def add(self, other: Tally) -> None:
        """Add another answer."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def figures(self) -> dict[str, object]:
        """The fields of a text that tells them."""
        rate = f"{self.steps / self.seconds:.1f}" if self.steps and self.seconds else "–"
        first = f"{self.first / self.answers:.2f}" if self.first else "–"
        return {**vars(self), "rate": rate, "first": first}


class Answer:
    """Shows an answer while it comes; `end` says how it ended, "" while it has not."""

    def __init__(self, screen: Screen, say: Phrases, clock: Callable[[], float] = time.monotonic) -> None:
        """The question is being sent now."""
        self._screen = screen
        self._say = say
        self._clock = clock
        self._asked = clock()
        self._first: float | None = None
        self._plain = PlainText()
        self._shown = ""
        self.id = ""
        """The response's id, once told."""
        self.end = ""
        self.tally = Tally()

    @property
    def begun(self) -> bool:
        """Whether any of its text arrived."""
        return self._first is not None

    def take(self, event: dict[str, Any]) -> None:
        """Go on with the next event. Kinds that say nothing to a reader are passed over."""
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
            case "response.completed" | "response.incomplete":
                self._ended(response)
            case "response.failed":
                self.fail("failed", response.get("error") or {})
            case "error":
                self._refused(event.get("error") or {})

    def fail(self, end: str, error: dict[str, Any]) -> None:
        """End it with an error that has a code and a message."""
        self._show(self._plain.finish())
        self._new_line()
        code = plain(str(error.get("code") or error.get("type") or "error"))
        mend = self._say("start_anew") if code in START_ANEW else ""
        self._screen.error(f"{code}: {plain(str(error.get('message', '')))}{mend}")
        self.end = end

    def _queued(self, event: dict[str, Any]) -> str:
        seconds = event.get("estimated_wait_seconds")
        about = self._say("about", seconds=round(seconds)) if isinstance(seconds, int | float) and seconds >= 1 else ""
        return self._say("queued", position=event.get("queue_position", "?")) + about

    def _refused(self, error: dict[str, Any]) -> None:
        if error.get("param") != "response_id":  # a cancel that came after the end: nothing is lost
            self.fail("refused", error)

    def _ended(self, response: dict[str, Any]) -> None:
        self._show(self._plain.finish())
        self._new_line()
        reason = str((response.get("incomplete_details") or {}).get("reason", ""))
        if reason in ("cancelled", "max_output_tokens"):
            self._screen.note(self._say(reason))
        elif reason:
            self._screen.note(self._say("incomplete", reason=plain(reason)))
        elif not self._shown:
            self._screen.note(self._say("empty"))
        self._count(response.get("usage") or {})
        self.id = str(response.get("id") or self.id)
        self.end = "kept"

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
