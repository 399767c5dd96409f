"""The engine's end of the socket pair: blocking, with a bell for its own threads."""

from __future__ import annotations

import os
import select
import socket

from engine.messages import Frames, FromEngine, ToEngine, frame, to_engine_decoder


class Channel:
    """The blocking end of the socket pair, and a bell that other threads ring."""

    def __init__(self, sock: socket.socket) -> None:
        """Own `sock`."""
        self._sock = sock
        self._frames = Frames()
        self._early: list[ToEngine] = []
        """What came together with the first message."""
        self._unsent = bytearray()
        self.urgent = False
        """Whether something waits to be sent that somebody waits for."""
        self._bell, self._rope = os.pipe()

    def first(self) -> ToEngine:
        """The first message: what this engine is to be. Raises EOFError."""
        messages: list[ToEngine] = []
        while not messages:
            messages = self.receive(wait=True)
        self._early = messages[1:]
        return messages[0]

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Messages that have come; with `wait`, after something came or the bell rang. Raises EOFError at the end."""
        if self._early:
            early, self._early = self._early, []
            return early
        ready, _, _ = select.select([self._sock.fileno(), self._bell], [], [], None if wait else 0)
        if self._bell in ready:
            os.read(self._bell, 1 << 12)
        if self._sock.fileno() not in ready:
            return []
        data = self._sock.recv(1 << 20)
        if not data:
            raise EOFError
        return [to_engine_decoder.decode(body) for body in self._frames.feed(data)]

    def ring(self) -> None:
        """Have `receive` return; from any thread."""
        os.write(self._rope, b"\0")

    def send(self, message: FromEngine, *, urgent: bool = True) -> None:
        """Put one message with those that `flush` sends."""
        self._unsent += frame(message)
        self.urgent |= urgent

    def flush(self) -> None:
        """Send what was said since the last time: one system call, and one waking of the gateway, a step."""
        if self._unsent:
            self._sock.sendall(self._unsent)
            self._unsent.clear()
            self.urgent = False
