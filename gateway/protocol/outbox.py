"""The outgoing events of one client, without I/O: a position in the log of each of its responses, and notices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from gateway.protocol.events import Event
from gateway.protocol.log import Reader

NOTICES: Final = 256
"""Maximum waiting notices of one client, above which the gateway reads no messages from it until it reads its own."""
NOTICE_BYTES: Final = 1 << 20
"""The same in bytes, since a failed steer is returned with its input. One more notice of any length may wait."""


class Outbox:
    """Returns a client's events: notices first, then its responses in turn.

    It holds no events of responses, only positions in their logs, so that a client that does not read costs only the
    memory of its notices.
    """

    def __init__(
        self, wake: Callable[[], None], on_lag: Callable[[Reader], None], on_done: Callable[[Reader], None]
    ) -> None:
        """`wake` is called when there may be something to send, `on_lag` when a reader has missed events.

        `on_done` is called when a reader's terminal event is returned.
        """
        self._wake = wake
        self._on_lag = on_lag
        self._on_done = on_done
        self._notices: list[bytes] = []  # lists, since two empty deques take 1.5 KB per idle connection
        self._readers: list[Reader] = []
        self._watchers: dict[Reader, Callable[[], None]] = {}

    @property
    def full(self) -> bool:
        """Whether the client must read before the gateway reads more messages from it."""
        return len(self._notices) >= NOTICES or sum(map(len, self._notices)) >= NOTICE_BYTES

    @property
    def empty(self) -> bool:
        """Whether nothing is left to send, and no response is attached."""
        return not self._notices and not self._readers

    def add_notice(self, event: Event) -> None:
        """Queue an event that belongs to no response's log: an error, or a steering event."""
        self._notices.append(msgspec.json.encode(event))  # an object could take many times as much memory
        self._wake()

    def attach(self, reader: Reader) -> None:
        """Send a response's events from `reader`'s position on, until the terminal event or `detach`."""
        watcher = self._watchers[reader] = partial(self._on_event, reader)
        self._readers.append(reader)
        reader.log.watchers.add(watcher)
        self._wake()

    def detach(self, reader: Reader) -> None:
        """Stop sending this response's events."""
        if reader in self._watchers:
            self._readers.remove(reader)
            reader.log.watchers.discard(self._watchers.pop(reader))

    def next(self) -> Event | bytes | None:
        """Return the next event to send, encoded or not; None if there is none until `wake` is called."""
        if self._notices:
            return self._notices.pop(0)
        for _ in range(len(self._readers)):
            reader = self._readers[0]
            self._readers.append(self._readers.pop(0))
            event = reader.next()
            if reader.done:
                self.detach(reader)
                self._on_done(reader)
            if event is not None:
                return event
        return None

    def close(self) -> None:
        """Drop all notices and readers."""
        for reader in tuple(self._readers):
            self.detach(reader)
        self._notices.clear()

    def _on_event(self, reader: Reader) -> None:
        try:
            if reader.lagging:
                self._on_lag(reader)
        finally:
            self._wake()
