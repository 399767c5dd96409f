"""The event log of one response, for clients that read slowly or resume.

A log has one writer and any number of readers, each at its own pace. A slow reader gets consecutive deltas merged into
one, so a slow client costs no memory beyond the bounded log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from gateway.protocol.events import Event

EVENTS: Final = 4096
"""Maximum events of one response that the log retains."""
BYTES: Final = 1 << 20
"""Maximum retained bytes: deltas, plus EVENT_BYTES per event. Texts that events share are counted once."""
EVENT_BYTES: Final = 128
MERGED: Final = 1 << 16
"""Maximum characters of one merged delta, which bounds the size of a frame."""
TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Types of the last event of a response, which has exactly one."""


class EventLog:
    """The newest events of one response, numbered from 0 without a gap.

    `watchers` are called after each event, in no order.
    """

    def __init__(
        self, *, events: int = EVENTS, size: int = BYTES, on_fault: Callable[[Exception], object] | None = None
    ) -> None:
        """Retain `events` events and `size` bytes. `on_fault` gets a watcher's exception; by default it is raised."""
        self._on_fault = on_fault
        self.watchers: set[Callable[[], None]] = set()
        self.terminal: Event | None = None
        """The last event of the response, if it has ended."""
        self._most = (events, size)
        self._events: deque[Event] = deque()
        self._first = 0
        self._size = 0

    @property
    def first(self) -> int:
        """Sequence number of the oldest retained event."""
        return self._first

    @property
    def end(self) -> int:
        """Sequence number of the next event."""
        return self._first + len(self._events)

    @property
    def size(self) -> int:
        """Bytes retained, counted as for BYTES."""
        return self._size

    def append(self, event: Event) -> None:
        """Number and append an event; drop the oldest ones above the limits."""
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
                # An error at one client must not end the response or skip the other watchers.
                if self._on_fault is None:
                    raise
                self._on_fault(error)

    def after(self, number: int) -> Event | None:
        """Return the event after `number`, merged with similar ones that follow; None if there is none yet.

        Raises LookupError if the event was dropped.
        """
        at = number + 1 - self._first
        if at < 0:
            raise LookupError(f"event {number + 1} was dropped; the oldest is {self._first}")
        if at >= len(self._events):
            return None
        last = at
        while last + 1 < len(self._events) and _can_merge(self._events[at], self._events[last + 1]):
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
    """One client's position in a log. `stream_id` is the lane that it wants in the events."""

    def __init__(self, log: EventLog, *, after: int = -1, stream_id: str | None = None) -> None:
        """Start after event number `after`."""
        self.log = log
        self.stream_id = stream_id
        self.done = False
        """Whether the terminal event has been read."""
        self._after = after
        self._dropped = False

    @property
    def lagging(self) -> bool:
        """Whether events were dropped unread. The reader then gets only the terminal event, with the whole response."""
        return not self.done and (self._dropped or self._after + 1 < self.log.first)

    def next(self) -> Event | None:
        """Return the next event for this client; None if there is none yet."""
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


def _can_merge(a: Event, b: Event) -> bool:
    """Return whether two events can be merged: deltas of one part, or queue positions."""
    kind = a["type"]
    if kind != b["type"] or not (kind.endswith(".delta") or kind == "response.queued"):
        return False
    return all(a.get(name) == b.get(name) for name in ("item_id", "output_index", "content_index"))
