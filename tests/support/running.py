"""A gateway as a user runs it: a process of its own on a free port, stopped by its own handle."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from openai import AsyncOpenAI
from openai.resources.responses.responses import AsyncResponsesConnection

from engine import engines_of

SAMOVAR = [sys.executable, "-m", "gateway.cli"]
CHILD_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SAMOVAR_")}


class Gateway:
    """`samovar serve` with settings given as keywords."""

    def __init__(self, state: Path, **settings: object) -> None:
        """Keep its conversations in `state`; nothing runs yet."""
        self.state = state
        self.flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        self._embedded = "model" not in settings
        self._process: subprocess.Popen[str] | None = None
        self.command = SAMOVAR
        self.environment = CHILD_ENVIRONMENT
        self.url = ""
        self.greeting = ""
        self.notice = ""

    def start(self) -> Self:
        """Start it and wait for the line that says that it listens."""
        command = [*self.command, "serve", "--port=0", f"--state-dir={self.state}", *self.flags]
        with (self.state.parent / f"{self.state.name}.log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment
            )
        assert self._process.stdout is not None
        self.greeting = self._process.stdout.readline()
        found = re.search(r"http://\S+", self.greeting)
        assert found, f"serve said {self.greeting!r}"
        self.url = found[0]
        if self._embedded:  # two lines say how to get another
            self.notice = "".join(self._process.stdout.readline() for _ in range(2))
        return self

    @property
    def process(self) -> psutil.Process:
        """The gateway's process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def engines(self) -> list[psutil.Process]:
        """Its engine processes."""
        return engines_of(self.process)

    def log(self) -> str:
        """What it wrote to stderr."""
        return (self.state.parent / f"{self.state.name}.log").read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait, and give the exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended by itself, and give the exit code."""
        assert self._process is not None
        code = self._process.wait(timeout=20)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        return code

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def get(self, path: str, **headers: str) -> httpx.Response:
        """GET a route."""
        return httpx.get(self.url + path, headers=headers, timeout=10)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """POST a route."""
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60)

    def delete(self, path: str, **headers: str) -> httpx.Response:
        """DELETE a route."""
        return httpx.delete(self.url + path, headers=headers, timeout=60)

    @asynccontextmanager
    async def connect(self, key: str = "none") -> AsyncIterator[Conversation]:
        """The official client's WebSocket mode."""
        async with connect(self.url, key) as conversation:
            yield conversation


@asynccontextmanager
async def connect(url: str, key: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Conversation]:
    """The official client's WebSocket mode, at whatever answers at `url`; `tls` says whom to trust there."""
    client = AsyncOpenAI(api_key=key, base_url=url + "/v1", websocket_base_url=url.replace("http", "ws", 1) + "/v1")
    options: Any = {"ssl": tls} if tls else {}  # passed on to websockets, more than its own type tells
    async with client, client.responses.connect(websocket_connection_options=options) as connection:
        yield Conversation(connection)


class Conversation:
    """Turns over one connection."""

    def __init__(self, connection: AsyncResponsesConnection) -> None:
        """Speak over `connection`."""
        self.connection = connection

    async def send(self, message: dict[str, Any] | str) -> None:
        """Send any message, or any text."""
        if isinstance(message, str):
            await self.connection._connection.send(message)
        else:
            await self.connection.send(message)  # type: ignore[arg-type]

    async def stream(self) -> AsyncIterator[Any]:
        """Events as they come; Any, because the client's union of 60 classes would have to be told apart each time."""
        async for event in self.connection:
            yield event

    async def events(self) -> list[Any]:
        """Events up to a terminal one or an error."""
        events = []
        async for event in self.stream():
            events.append(event)
            if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
                return events
        raise AssertionError("the connection ended")

    async def ask(self, text: str, **fields: Any) -> list[Any]:
        """Events of one request."""
        await self.send({"type": "response.create", "input": text, **fields})
        return await self.events()


def said(events: list[Any]) -> str:
    """The answer's text, from its deltas."""
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")
