"""Division of an answer's text into output items: reasoning, messages and function calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart, Part, ReasoningPart, TextPart
from gateway.protocol.events import ItemEvent
from gateway.protocol.output_items import CallItem, MessageItem, OutputItem, ReasoningItem
from gateway.protocol.reasoning import CLOSE, END
from gateway.protocol.response_events import ResponseEvents
from gateway.protocol.tools import OutputConstraint

Logprobs = Sequence[dict[str, Any]]
"""Log probabilities, one entry per token, in the format of the API's events."""


class Answer:
    """Opens, fills and closes output items. `new_id` returns a new id with the given prefix."""

    def __init__(self, events: ResponseEvents, *, form: OutputConstraint, new_id: Callable[[str], str]) -> None:
        """`form` is the constraint under which the answer is generated."""
        self.text = ""
        """The answer so far, as the model wrote it."""
        self._events = events
        self._reader = AnswerReader(
            form.calls, whole=form.whole, parameters=form.parameters, reasoning=form.reasoning, fenced=form.fenced
        )
        self._has_channels = form.reasoning == "channels"
        self._is_plain = form.calls is None and not form.reasoning
        """Whether the answer is text from its first token on."""
        self._new_id = new_id
        self._open: OutputItem | None = None
        self._has_thought = False
        self._logprobs: list[dict[str, Any]] = []
        """Log probabilities of text that is in no event yet."""

    @property
    def reasoning(self) -> str:
        """The answer's beginning that is reasoning, with its tags."""
        if not self._has_thought:
            return ""
        if self._has_channels:
            thought, tag, _ = self.text.rpartition(END)
            return thought + tag or self.text
        thought, tag, _ = self.text.partition(CLOSE)
        return thought + tag

    def begin(self) -> list[ItemEvent]:
        """Return the events that can be emitted before the first token."""
        return self._text("") if self._is_plain else []

    def feed(self, text: str, logprobs: Logprobs = ()) -> list[ItemEvent]:
        """Return the events of more text."""
        self.text += text
        self._logprobs += logprobs
        return self._emit(self._reader.feed(text))

    def finish(self) -> list[ItemEvent]:
        """Return the last events; an answer without text, calls and reasoning is an empty message."""
        events = self._emit(self._reader.finish())
        return events if self._open is not None else [*events, *self._text("")]

    def _emit(self, parts: Sequence[Part]) -> list[ItemEvent]:
        events: list[ItemEvent] = []
        for part in parts:
            match part:
                case TextPart(text=text):
                    events += self._text(text)
                    continue
                case ReasoningPart(text=text):
                    if not isinstance(self._open, ReasoningItem):
                        events += self._switch(ReasoningItem(self._new_id("rs")))
                    self._has_thought = True
                    events.append(self._events.delta(text))
                case CallStart(name=name):
                    events += self._switch(CallItem(self._new_id("fc"), self._new_id("call"), name))
                case ArgumentsPart(text=text):
                    events.append(self._events.delta(text))
            self._logprobs.clear()  # only messages have them
        return events

    def _text(self, text: str) -> list[ItemEvent]:
        opened = [] if isinstance(self._open, MessageItem) else self._switch(MessageItem(self._new_id("msg")))
        if not text:
            return opened
        logprobs, self._logprobs = self._logprobs, []
        return [*opened, self._events.delta(text, logprobs)]

    def _switch(self, item: OutputItem) -> list[ItemEvent]:
        closed, self._open = self._events.close(), item
        return [*closed, *self._events.open(item)]
