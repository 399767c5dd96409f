"""WebSockets whose peers can neither fill the gateway's memory nor hold it busy with frames that carry no message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from gateway.errors import ApiError

CONTROLS: Final = 60
"""Control frames beyond the message rate before a connection is closed. A program pings a few times a minute."""
FRAGMENTS: Final = 16_384
"""Fragments of one message: 1 KiB each where the message is as long as it may be. Empty ones have no other bound."""
LONG: Final = 1 << 20
"""Bytes from which on a message will be refused. Up to 16 MiB it is received all the same, so that it is answered."""
LONG_BYTES: Final = 64 << 20
"""Bytes of all such messages that may be on their way at a time."""
_POLICY: Final = 1008
_TOO_BIG: Final = 1009
WATCH: Final = "watch_controls"
"""Under which name of a scope's state the app finds `BoundedSocket.watch_controls`."""


class BoundedSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which by itself answers every ping, whether or not its peer reads the answers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As uvicorn's."""
        super().__init__(*args, **kwargs)
        self._heard: Callable[[], None] | None = None
        self._excess = 0
        """Control frames beyond the message rate since the last one within it."""
        self._pong = b""
        """The newest pong that was not sent, as the write buffer is full."""

    def watch_controls(self, heard: Callable[[], None]) -> None:
        """Have `heard` count each control frame; it raises ApiError where there are too many."""
        self._heard = heard
        self._excess = 0

    @property
    def held(self) -> int:
        """Bytes of the message that is on its way."""
        return len(self.conn.reader.buffer) + sum(map(len, self.frames))

    def data_received(self, data: bytes) -> None:
        """Take a piece; hang up if too many long messages are on their way already."""
        super().data_received(data)
        held = self.held
        if held // LONG == (held - len(data)) // LONG:  # to look at all connections takes time: once for each MiB
            return
        others = (other.held for other in self.connections if isinstance(other, BoundedSocket))
        if held > LONG and sum(size for size in others if size > LONG) > LONG_BYTES and not self.close_sent:
            self._refuse(_TOO_BIG, "too many long messages come at once")

    def handle_connect(self, event: Any) -> None:
        """Let the app find this connection."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["state"][WATCH] = self.watch_controls

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the app, which would keep this protocol and itself alive until the next garbage collection."""
        super().connection_lost(exc)
        self._heard = None
        if hasattr(self, "scope"):
            self.scope["state"].pop(WATCH, None)

    def handle_ping(self) -> None:
        """Answer, or remember the answer to the newest ping for when the peer reads again (RFC 6455, section 5.5.3)."""
        pong = b"".join(self.conn.data_to_send())
        if not self._count_control():
            return
        if self.writable.is_set():
            self.transport.write(pong)
        elif pong:  # none if it went with those of earlier pings
            self._pong = pong

    def handle_pong(self, event: Frame) -> None:
        """Count it: nobody needs to send pongs that were not asked for."""
        if self._count_control():
            super().handle_pong(event)

    def resume_writing(self) -> None:
        """Send what was held back."""
        super().resume_writing()
        pong, self._pong = self._pong, b""
        if pong and not self.transport.is_closing():
            self.transport.write(pong)

    def handle_cont(self, event: Frame) -> None:
        """Take a fragment."""
        if len(self.frames) >= FRAGMENTS:
            self._refuse(_TOO_BIG, f"a message has at most {FRAGMENTS} fragments")
        else:
            super().handle_cont(event)

    def _count_control(self) -> bool:
        """Count a control frame; return False if the connection was closed for it, or closes already."""
        if self.close_sent or self.transport.is_closing():
            return False
        try:
            if self._heard is None:
                self._excess += 1
            else:
                self._heard()
                self._excess = 0
        except ApiError:
            self._excess += 1
        if self._excess > CONTROLS:
            self._refuse(_POLICY, "too many control frames")
            return False
        return True

    def _refuse(self, code: int, reason: str) -> None:
        """Close the connection, without waiting for a peer that may not read."""
        self.conn.fail(code, reason)
        self.handle_parser_exception()
        if not self.writable.is_set():
            self.transport.abort()
