"""The event log of one response, for clients that read slowly or resume.

A log has one writer and any number of readers, each at its own pace. A slow reader gets consecutive deltas merged into
one, so a slow client costs no memory beyond the bounded log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from msgspec.structs import replace

from gateway.protocol.events import DeltaEvent, Event, InProgress, Queued, TerminalEvent, TextDelta, on_lane

EVENTS: Final = 4096
"""Maximum events of one response that the log retains."""
BYTES: Final = 1 << 20
"""Maximum retained bytes: deltas, plus EVENT_BYTES per event. Texts that events share are counted once."""
EVENT_BYTES: Final = 128
MERGED: Final = 1 << 16
"""Maximum characters of one merged delta, which bounds the size of a frame."""


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
        self.terminal: TerminalEvent | None = None
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
        event = replace(event, sequence_number=self.end)
        self._events.append(event)
        self._size += _size(event)
        if isinstance(event, TerminalEvent):
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
        first = self._events[at]
        if at + 1 == len(self._events):
            return first
        following = (self._events[i] for i in range(at + 1, len(self._events)))
        if isinstance(first, DeltaEvent):
            return _merged(first, following)
        return _latest(first, following) if _is_superseded(first) else first


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
        assert event.sequence_number is not None, "the log has not numbered the event"  # noqa: S101
        self._after = event.sequence_number
        self.done = event is self.log.terminal
        return on_lane(event, self.stream_id)


def _size(event: Event) -> int:
    if not isinstance(event, DeltaEvent):
        return EVENT_BYTES
    logprobs = len(event.logprobs) if isinstance(event, TextDelta) else 0
    return EVENT_BYTES * (1 + logprobs) + len(event.delta.encode("utf-8", "surrogatepass"))


def _is_superseded(event: Event) -> bool:
    """Return whether a later event of the same type makes this one pointless."""
    return isinstance(event, Queued) or (isinstance(event, InProgress) and event.prompt_progress is not None)


def _latest(first: Event, following: Iterable[Event]) -> Event:
    """Return the last of the queue positions, or of the prompt's progress, with which `first` and `following` begin."""
    latest = first
    for event in following:
        if type(event) is not type(first):
            break
        latest = event
    return latest


def _merged(first: DeltaEvent, following: Iterable[Event]) -> DeltaEvent:
    """Return `first` with the deltas of the same part that immediately follow, up to MERGED characters."""
    deltas, length = [first], len(first.delta)
    for event in following:
        if not isinstance(event, DeltaEvent) or event.part != first.part or length + len(event.delta) > MERGED:
            break
        length += len(event.delta)
        deltas.append(event)
    if len(deltas) == 1:
        return first
    text = "".join(event.delta for event in deltas)
    merged = replace(first, sequence_number=deltas[-1].sequence_number, delta=text)
    if not isinstance(merged, TextDelta):
        return merged
    return replace(
        merged, logprobs=[entry for event in deltas if isinstance(event, TextDelta) for entry in event.logprobs]
    )
