"""Division of an answer's text into output items: reasoning, messages and function calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.protocol.calls import ArgumentsPart, CallReader, CallStart, Part, TextPart
from gateway.protocol.events import ItemEvent
from gateway.protocol.output_items import CallItem, MessageItem, OutputItem, ReasoningItem
from gateway.protocol.reasoning import ReasoningSplitter, Split
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
        self._reader = CallReader(form.calls, whole=form.whole, parameters=form.parameters) if form.calls else None
        self._splitter = ReasoningSplitter(inside=form.reasoning == "open") if form.reasoning else None
        self._new_id = new_id
        self._open: OutputItem | None = None
        self._logprobs: list[dict[str, Any]] = []
        """Log probabilities of text that is in no event yet."""

    def begin(self) -> list[ItemEvent]:
        """Return the events that can be emitted before the first token."""
        return [] if self._reader is not None or self._splitter is not None else self._text("", ())

    def feed(self, text: str, logprobs: Logprobs = ()) -> list[ItemEvent]:
        """Return the events of more text."""
        self.text += text
        self._logprobs += logprobs
        return self._divide(Split("", text) if self._splitter is None else self._splitter.feed(text))

    def finish(self) -> list[ItemEvent]:
        """Return the last events; an answer without text, calls and reasoning is an empty message."""
        events = self._divide(self._splitter.finish()) if self._splitter is not None else []
        events += self._emit(self._reader.finish(), ()) if self._reader is not None else []
        return events if self._open is not None else [*events, *self._text("", ())]

    def _divide(self, split: Split) -> list[ItemEvent]:
        events = self._think(split.thinking) if split.thinking else []
        if split.answer:
            parts = [TextPart(split.answer)] if self._reader is None else self._reader.feed(split.answer)
            logprobs, self._logprobs = self._logprobs, []
            events += self._emit(parts, logprobs)
        return events

    def _think(self, text: str) -> list[ItemEvent]:
        self._logprobs.clear()  # only messages have them
        opened = [] if isinstance(self._open, ReasoningItem) else self._switch(ReasoningItem(self._new_id("rs")))
        return [*opened, self._events.delta(text)]

    def _emit(self, parts: Sequence[Part], logprobs: Logprobs) -> list[ItemEvent]:
        events: list[ItemEvent] = []
        for part in parts:
            match part:
                case TextPart(text=text):
                    events += self._text(text, logprobs)
                case CallStart(name=name):
                    events += self._switch(CallItem(self._new_id("fc"), self._new_id("call"), name))
                case ArgumentsPart(text=text):
                    events.append(self._events.delta(text))
        return events

    def _text(self, text: str, logprobs: Logprobs) -> list[ItemEvent]:
        opened = [] if isinstance(self._open, MessageItem) else self._switch(MessageItem(self._new_id("msg")))
        return [*opened, self._events.delta(text, logprobs)] if text else opened

    def _switch(self, item: OutputItem) -> list[ItemEvent]:
        closed, self._open = self._events.close(), item
        return [*closed, *self._events.open(item)]
