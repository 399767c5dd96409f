"""WebSockets with bounded memory, a bounded rate of frames that carry no message, and turns of large messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from gateway.errors import ApiError
from gateway.transport.intake import SMALL, intake_in
from gateway.transport.pacing import PIECE

CONTROLS: Final = 60
"""Control frames beyond the message rate after which a connection is closed. Programs ping a few times a minute."""
FRAGMENTS: Final = 16_384
"""Maximum fragments of one message: 1 KiB each in a message of 16 MiB. Nothing else bounds empty fragments."""
LONG: Final = 1 << 20
"""Bytes above which a message is rejected. Up to 16 MiB it is still received, so that the client gets an error."""
LONG_BYTES: Final = 64 << 20
"""Maximum bytes of all long messages in transit at a time."""
_POLICY: Final = 1008
_TOO_BIG: Final = 1009
WATCH: Final = "watch_controls"
"""Key in a scope's state under which the app finds `BoundedSocket.watch_controls`."""


class BoundedSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with bounds; uvicorn itself answers every ping, even if its peer reads no pongs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take uvicorn's arguments."""
        super().__init__(*args, **kwargs)
        self._count_message: Callable[[], None] | None = None
        self._pacer = intake_in(self.app_state).pacer
        self._owner = ""
        """Owner of the connection's turns; none before the app has accepted the connection."""
        self._excess = 0
        """Control frames beyond the message rate since the last one within it."""
        self._pong = b""
        """The newest pong that was not sent because the write buffer is full."""

    def watch_controls(self, count_message: Callable[[], None], *, owner: str) -> None:
        """Call `count_message` for each control frame; it raises ApiError if there are too many.

        Large messages wait for turns of `owner`.
        """
        self._count_message = count_message
        self._owner = owner
        self._excess = 0

    @property
    def held(self) -> int:
        """Bytes received of the incomplete message."""
        return len(self.conn.reader.buffer) + sum(map(len, self.frames))

    def data_received(self, data: bytes) -> None:
        """Receive data; close the connection if too many long messages are in transit.

        A large message is read piece by piece, each in its turn.
        """
        held = self.held + len(data)
        if held <= PIECE:
            super().data_received(data)
            return
        with self._pacer.work():
            super().data_received(data)
        held = self.held
        if held > SMALL and not self.read_paused and not self.transport.is_closing():
            self.transport.pause_reading()
            self._pacer.call(self._owner, self._read_on)
        if held // LONG == (held - len(data)) // LONG:  # visiting all connections takes time: once per MiB
            return
        others = (other.held for other in self.connections if isinstance(other, BoundedSocket))
        if held > LONG and sum(size for size in others if size > LONG) > LONG_BYTES and not self.close_sent:
            self._refuse(_TOO_BIG, "too many long messages arrive at once; send this one again later")

    def _read_on(self) -> None:
        """Read the next piece of a large message."""
        if not self.transport.is_closing() and not self.read_paused:
            self.transport.resume_reading()

    async def send(self, message: Any) -> None:
        """Send a message of the app. A refused upgrade is complete with its body, which uvicorn reports as an error."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def handle_connect(self, event: Any) -> None:
        """Put `watch_controls` into the scope's state for the app."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["state"][WATCH] = self.watch_controls

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the references to the app, a cycle that would live until the next garbage collection."""
        super().connection_lost(exc)
        self._count_message = None
        if hasattr(self, "scope"):
            self.scope["state"].pop(WATCH, None)

    def handle_ping(self) -> None:
        """Send a pong; while the peer does not read, hold back only the newest one (RFC 6455, section 5.5.3)."""
        pong = b"".join(self.conn.data_to_send())
        if not self._count_control():
            return
        if self.writable.is_set():
            self.transport.write(pong)
        elif pong:  # empty if it was sent with earlier pongs
            self._pong = pong

    def handle_pong(self, event: Frame) -> None:
        """Count the pong: a client has no need to send unsolicited ones."""
        if self._count_control():
            super().handle_pong(event)

    def resume_writing(self) -> None:
        """Send the pong that was held back."""
        super().resume_writing()
        pong, self._pong = self._pong, b""
        if pong and not self.transport.is_closing():
            self.transport.write(pong)

    def handle_cont(self, event: Frame) -> None:
        """Receive a fragment; close the connection if the message has too many."""
        if len(self.frames) >= FRAGMENTS:
            self._refuse(_TOO_BIG, f"a message has at most {FRAGMENTS} fragments")
        else:
            super().handle_cont(event)

    def _count_control(self) -> bool:
        """Count a control frame; return False if the connection is closing or was closed because of it."""
        if self.close_sent or self.transport.is_closing():
            return False
        try:
            if self._count_message is None:
                self._excess += 1
            else:
                self._count_message()
                self._excess = 0
        except ApiError:
            self._excess += 1
        if self._excess > CONTROLS:
            self._refuse(_POLICY, "too many control frames")
            return False
        return True

    def _refuse(self, code: int, reason: str) -> None:
        """Close the connection without waiting for the peer, which may not read."""
        self.conn.fail(code, reason)
        self.handle_parser_exception()
        if not self.writable.is_set():
            self.transport.abort()
