"""An answer's text as the output items that it is: messages, and calls of functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.protocol.calls import Argued, Called, CallReader, Part, Said
from gateway.protocol.events import CallItem, Event, MessageItem, ResponseEvents

Logprobs = Sequence[dict[str, Any]]
"""One for each token of a text, as the events of docs/api.md carry them."""


class Answer:
    """Opens and fills items. `new_id` gives ids by their prefix."""

    def __init__(self, events: ResponseEvents, *, calls: bool, new_id: Callable[[str], str]) -> None:
        """With `calls` functions may be called in it; otherwise all of it is text."""
        self.text = ""
        """All of it, as the model wrote it."""
        self._events = events
        self._reader = CallReader() if calls else None
        self._new_id = new_id
        self._open: MessageItem | CallItem | None = None

    def begin(self) -> list[Event]:
        """What can be told before a token has come."""
        return [] if self._reader is not None else self._say("", ())

    def feed(self, text: str, logprobs: Logprobs = ()) -> list[Event]:
        """More text."""
        self.text += text
        parts = [Said(text)] if self._reader is None else self._reader.feed(text)
        return self._tell(parts, logprobs)

    def finish(self) -> list[Event]:
        """It is over; an answer without any text or call is an empty message."""
        events = self._tell(self._reader.finish(), ()) if self._reader is not None else []
        return events if self._open is not None else [*events, *self._say("", ())]

    def _tell(self, parts: Sequence[Part], logprobs: Logprobs) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            match part:
                case Said(text=text):
                    events += self._say(text, logprobs)
                case Called(name=name):
                    events += self._switch(CallItem(self._new_id("fc"), self._new_id("call"), name))
                case Argued(text=text):
                    events.append(self._events.delta(text))
        return events

    def _say(self, text: str, logprobs: Logprobs) -> list[Event]:
        opened = [] if isinstance(self._open, MessageItem) else self._switch(MessageItem(self._new_id("msg")))
        return [*opened, self._events.delta(text, logprobs)] if text else opened

    def _switch(self, item: MessageItem | CallItem) -> list[Event]:
        closed, self._open = self._events.close(), item
        return [*closed, *self._events.open(item)]
