"""What one client is still to be sent, without the socket: a place in each of its responses' logs, and notes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from gateway.protocol.events import Event
from gateway.protocol.log import Reader

NOTES: Final = 256
"""Errors and notices that may wait for one client; beyond, nothing more is read from it until it reads."""
NOTE_BYTES: Final = 1 << 20
"""The same in bytes: a steer that failed goes back with its input. One more note, however long, may wait."""


class Outbox:
    """Gives a client's events in turns between its responses, notes first.

    It holds no events of responses, only places in their logs, so that a client that does not read costs no memory but
    for its notes.
    """

    def __init__(
        self, wake: Callable[[], None], on_lag: Callable[[Reader], None], on_done: Callable[[Reader], None]
    ) -> None:
        """`wake` is called when there may be something to send, `on_lag` when a reader fell too far behind.

        `on_done` is called when a reader's terminal event is given out.
        """
        self._wake = wake
        self._on_lag = on_lag
        self._on_done = on_done
        self._notes: list[bytes] = []  # short, both of them; two empty deques take 1.5 KB of an idle connection
        self._readers: list[Reader] = []
        self._watchers: dict[Reader, Callable[[], None]] = {}

    @property
    def full(self) -> bool:
        """Whether its client has to read before it may say more."""
        return len(self._notes) >= NOTES or sum(map(len, self._notes)) >= NOTE_BYTES

    @property
    def empty(self) -> bool:
        """Whether nothing is left to send, now or later."""
        return not self._notes and not self._readers

    def note(self, event: Event) -> None:
        """Send an event that is no response's: an error, or word on steering."""
        self._notes.append(msgspec.json.encode(event))  # as objects it could take many times as much
        self._wake()

    def attach(self, reader: Reader) -> None:
        """Send a response's events from where `reader` stands, until its terminal event is sent or it is detached."""
        watcher = self._watchers[reader] = partial(self._news, reader)
        self._readers.append(reader)
        reader.log.watchers.add(watcher)
        self._wake()

    def detach(self, reader: Reader) -> None:
        """Send no more of this response's events."""
        if reader in self._watchers:
            self._readers.remove(reader)
            reader.log.watchers.discard(self._watchers.pop(reader))

    def next(self) -> Event | bytes | None:
        """What to send now, encoded or not, or None until `wake` is called."""
        if self._notes:
            return self._notes.pop(0)
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
        """Forget everything."""
        for reader in tuple(self._readers):
            self.detach(reader)
        self._notes.clear()

    def _news(self, reader: Reader) -> None:
        try:
            if reader.lagging:
                self._on_lag(reader)
        finally:
            self._wake()
