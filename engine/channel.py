"""The engine's end of the socket pair: blocking, and other threads of the engine can wake it."""

from __future__ import annotations

import os
import select
import socket

from engine.messages import Frames, FromEngine, Logprob, ToEngine, Tokens, frame, to_engine_decoder


class Channel:
    """Receives and sends messages, and lets other threads interrupt a blocking `receive`."""

    def __init__(self, sock: socket.socket) -> None:
        """Own `sock`."""
        self._sock = sock
        self._frames = Frames()
        self._early: list[ToEngine] = []
        """Messages that arrived together with the first one."""
        self._tokens: dict[int, Tokens] = {}
        """Collected tokens, by request."""
        self._unsent = bytearray()
        self.urgent = False
        """Whether an unsent message must not wait for the next periodic flush."""
        self._wake_reader, self._wake_writer = os.pipe()

    def first(self) -> ToEngine:
        """Return the first message, the engine's configuration. Raises EOFError if the gateway closed the socket."""
        messages: list[ToEngine] = []
        while not messages:
            messages = self.receive(wait=True)
        self._early = messages[1:]
        return messages[0]

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Return the messages that have arrived. With `wait`, block until data arrives or `wake` is called.

        Raises EOFError if the gateway closed the socket.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        ready, _, _ = select.select([self._sock.fileno(), self._wake_reader], [], [], None if wait else 0)
        if self._wake_reader in ready:
            os.read(self._wake_reader, 1 << 12)
        if self._sock.fileno() not in ready:
            return []
        data = self._sock.recv(1 << 20)
        if not data:
            raise EOFError
        return [to_engine_decoder.decode(body) for body in self._frames.feed(data)]

    def wake(self) -> None:
        """Make a blocking `receive` return. May be called from any thread."""
        os.write(self._wake_writer, b"\0")

    def send(self, message: FromEngine, *, urgent: bool = True) -> None:
        """Queue a message for the next `flush`."""
        self._unsent += frame(message)
        self.urgent |= urgent

    def send_token(self, request: int, token: int, logprobs: list[Logprob]) -> None:
        """Collect a token of a request for the next `send_tokens`."""
        collected = self._tokens.get(request)
        if collected is None:
            collected = self._tokens[request] = Tokens(request, [], [])
        collected.ids.append(token)
        collected.logprobs.extend(logprobs)

    @property
    def collected(self) -> int:
        """The number of requests with collected tokens."""
        return len(self._tokens)

    def send_tokens(self, request: int) -> None:
        """Queue the collected tokens of a request as one message."""
        collected = self._tokens.pop(request, None)
        if collected is not None:
            self.send(collected)

    def send_all_tokens(self) -> None:
        """Queue the collected tokens of all requests."""
        for request in list(self._tokens):
            self.send_tokens(request)

    def flush(self) -> None:
        """Send all queued messages at once, so that a step costs one system call and wakes the gateway once."""
        if self._unsent:
            self._sock.sendall(self._unsent)
            self._unsent.clear()
            self.urgent = False
