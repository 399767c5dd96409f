"""Helpers for tests of `samovar chat`: a scripted gateway, and a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import ssl
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from websockets.protocol import State
from websockets.sync.server import ServerConnection, serve

from tests.support.running import CHILD_ENVIRONMENT

ENGLISH = {**CHILD_ENVIRONMENT, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}
Play = Callable[[ServerConnection, dict[str, Any]], None]


@contextmanager
def stand_in(play: Play, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Run a gateway that answers each request with `play`, which sends events; yield its port."""

    def handle(connection: ServerConnection) -> None:
        for frame in connection:
            if connection.protocol.state is State.OPEN:  # otherwise the request came too late
                play(connection, json.loads(frame))

    with serve(handle, "127.0.0.1", 0, ssl=tls) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


def send(connection: ServerConnection, kind: str, **fields: Any) -> None:
    """Send an event."""
    connection.send(json.dumps({"type": kind, **fields}))


def end(connection: ServerConnection, name: str, *, reason: str = "", tokens: tuple[int, int, int] = (1, 0, 1)) -> None:
    """Complete an answer; `tokens` are those of the prompt, cached and generated."""
    usage = {
        "input_tokens": tokens[0],
        "input_tokens_details": {"cached_tokens": tokens[1]},
        "output_tokens": tokens[2],
    }
    details = {"reason": reason} if reason else None
    kind = "response.incomplete" if reason else "response.completed"
    send(connection, kind, response={"id": name, "incomplete_details": details, "usage": usage})


def answer(connection: ServerConnection, name: str, *pieces: str, **how: Any) -> None:
    """Send a whole answer."""
    send(connection, "response.created", response={"id": name})
    for piece in pieces:
        send(connection, "response.output_text.delta", delta=piece)
    end(connection, name, **how)


class Terminal:
    """A program that is the session leader of a terminal, so that Ctrl-C reaches it as in a window."""

    def __init__(self, command: list[str], **environment: str) -> None:
        """Start the program."""
        self._keyboard, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**ENGLISH, **environment},
        )
        os.close(terminal)
        self._unseen = ""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._keyboard, keys.encode())

    def see(self, text: str, timeout: float = 15.0) -> str:
        """Wait until `text` is shown, and return the output up to its end."""
        until = time.monotonic() + timeout
        while text not in self._unseen:
            assert time.monotonic() < until, f"{text!r} was not shown, but {self._unseen!r}"
            if select.select([self._keyboard], [], [], 0.1)[0]:
                self._unseen += os.read(self._keyboard, 1 << 16).decode(errors="replace").replace("\r", "")
        seen, _, self._unseen = self._unseen.partition(text)
        return seen + text

    def leave(self, keys: str = "\x04") -> int:
        """Press keys that quit the program, and return its exit code."""
        self.type(keys)
        until = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < until:
            self._drain()
        return self.process.wait(timeout=1)

    def _drain(self) -> None:
        if select.select([self._keyboard], [], [], 0.1)[0]:
            try:
                self._unseen += os.read(self._keyboard, 1 << 16).decode(errors="replace")
            except OSError:  # Linux reports a closed other side this way
                time.sleep(0.05)

    def __enter__(self) -> Self:
        """Return the running terminal."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the program."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._keyboard)


class Talker:
    """A scripted gateway whose answers continue until they are cancelled, unless it is `deaf`."""

    def __init__(self, *, deaf: bool = False) -> None:
        """Process cancels unless `deaf`."""
        self.requests: list[dict[str, Any]] = []
        self._deaf = deaf
        self._running: threading.Event | None = None

    def __call__(self, connection: ServerConnection, request: dict[str, Any]) -> None:
        """Answer, or stop."""
        self.requests.append(request)
        if request["type"] == "response.cancel":
            if self._running is not None and not self._deaf:
                self._running.set()
            return
        cancelled = self._running = threading.Event()
        name = f"resp_{sum(request['type'] == 'response.create' for request in self.requests)}"
        threading.Thread(target=self._talk, args=(connection, name, cancelled), daemon=True).start()

    def _talk(self, connection: ServerConnection, name: str, cancelled: threading.Event) -> None:
        try:
            send(connection, "response.created", response={"id": name})
            send(connection, "response.in_progress", response={"id": name})
            while not cancelled.wait(0.02):
                send(connection, "response.output_text.delta", delta="tick ")
            end(connection, name, reason="cancelled")
        except Exception:  # noqa: BLE001 - the chat disconnected
            return
