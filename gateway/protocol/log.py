"""The events of one response, kept for clients that read slowly or come back.

A log is written once and read by any number of readers, each at its own pace. A reader that fell behind gets runs of
deltas as one: what a slow client costs is a bounded log, not a queue of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from gateway.protocol.events import Event

EVENTS: Final = 4096
"""Events of one response that are kept."""
BYTES: Final = 1 << 20
"""Bytes of deltas, with EVENT_BYTES for each event, that are kept; texts that events share are counted once."""
EVENT_BYTES: Final = 128
MERGED: Final = 1 << 16
"""Characters of one merged delta at most, so that a frame stays a frame."""
TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Types of the last event of a response; there is exactly one."""


class EventLog:
    """The newest events of one response, numbered from 0 without a gap.

    `watchers` are called after each event, in no order.
    """

    def __init__(
        self, *, events: int = EVENTS, size: int = BYTES, on_fault: Callable[[Exception], object] | None = None
    ) -> None:
        """Keep `events` events and `size` bytes of them; `on_fault` gets what a watcher raises, else `append` does."""
        self._on_fault = on_fault
        self.watchers: set[Callable[[], None]] = set()
        self.terminal: Event | None = None
        """The last event of the response, once it has come."""
        self._most = (events, size)
        self._events: deque[Event] = deque()
        self._first = 0
        self._size = 0

    @property
    def first(self) -> int:
        """Sequence number of the oldest event that is still there."""
        return self._first

    @property
    def end(self) -> int:
        """Sequence number of the next event to come."""
        return self._first + len(self._events)

    @property
    def size(self) -> int:
        """Bytes held, as BYTES counts them."""
        return self._size

    def append(self, event: Event) -> None:
        """Number the next event and take it; let the oldest go when there are too many."""
        assert self.terminal is None, "a response ends once"  # noqa: S101
        event = {"type": event["type"], "sequence_number": self.end, **event}
        self._events.append(event)
        self._size += _size(event)
        if event["type"] in TERMINAL:
            self.terminal = event
        events, size = self._most
        while len(self._events) > 1 and (len(self._events) > events or self._size > size):
            self._size -= _size(self._events.popleft())
            self._first += 1
        for watcher in tuple(self.watchers):
            try:
                watcher()
            except Exception as error:
                # One client's fault must not end the response, nor leave the other watchers out.
                if self._on_fault is None:
                    raise
                self._on_fault(error)

    def after(self, number: int) -> Event | None:
        """The event behind `number`, or one that stands for it and its like behind it; None when it is still to come.

        Raises LookupError when it is gone.
        """
        at = number + 1 - self._first
        if at < 0:
            raise LookupError(f"event {number + 1} is gone; the oldest is {self._first}")
        if at >= len(self._events):
            return None
        last = at
        while last + 1 < len(self._events) and _alike(self._events[at], self._events[last + 1]):
            last += 1
        return self._events[at] if last == at else self._merged(at, last)

    def _merged(self, at: int, last: int) -> Event:
        if self._events[at]["type"] == "response.queued":
            return self._events[last]
        texts: list[str] = []
        extra: list[object] = []
        length = 0
        for i in range(at, last + 1):
            event = self._events[i]
            if length and length + len(event["delta"]) > MERGED:
                break
            length += len(event["delta"])
            texts.append(event["delta"])
            extra += event.get("logprobs", ())
            number = event["sequence_number"]
        merged = {**self._events[at], "sequence_number": number, "delta": "".join(texts)}
        return {**merged, "logprobs": extra} if "logprobs" in merged else merged


class Reader:
    """One client's place in a log. `stream_id` is the lane on which it wants the events."""

    def __init__(self, log: EventLog, *, after: int = -1, stream_id: str | None = None) -> None:
        """Begin behind event `after`."""
        self.log = log
        self.stream_id = stream_id
        self.done = False
        """Whether it has read the terminal event."""
        self._after = after
        self._dropped = False

    @property
    def lagging(self) -> bool:
        """Whether events went before it came to read them: it gets only the terminal one then, which tells all."""
        return not self.done and (self._dropped or self._after + 1 < self.log.first)

    def next(self) -> Event | None:
        """The next event for this client, or None until there is one."""
        if self.done:
            return None
        self._dropped = self.lagging
        event = self.log.terminal if self._dropped else self.log.after(self._after)
        if event is None:
            return None
        self._after = event["sequence_number"]
        self.done = event is self.log.terminal
        return event if self.stream_id is None else {**event, "stream_id": self.stream_id}


def _size(event: Event) -> int:
    text = len(event.get("delta", "").encode("utf-8", "surrogatepass"))
    return EVENT_BYTES * (1 + len(event.get("logprobs", ()))) + text


def _alike(a: Event, b: Event) -> bool:
    """Whether one event can stand for both: deltas of one part, or two tellings of a queue position."""
    kind = a["type"]
    if kind != b["type"] or not (kind.endswith(".delta") or kind == "response.queued"):
        return False
    return all(a.get(name) == b.get(name) for name in ("item_id", "output_index", "content_index"))
