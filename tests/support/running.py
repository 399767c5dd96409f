"""Runs `samovar serve` in a child process on a free port, and sends requests to it."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from openai import AsyncOpenAI
from openai.resources.responses.responses import AsyncResponsesConnection

from gateway.cli.launcher import SAMOVAR, GatewayProcess

__all__ = ["CHILD_ENVIRONMENT", "SAMOVAR", "Conversation", "Gateway", "connect", "said"]

UNPREPARED = {"SAMOVAR_PRELOAD": "no", "SAMOVAR_SELF_TEST": "no", "SAMOVAR_SPECULATION": "no"}
"""Tests count steps, and busy engines would slow each other down."""
CHILD_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SAMOVAR_")} | UNPREPARED


class Gateway(GatewayProcess):
    """`samovar serve` with settings given as keywords, and the requests that tests send to it."""

    def __init__(self, state: Path, **settings: object) -> None:
        """Store conversations in `state`, and the log in a file next to it; nothing is started yet."""
        super().__init__(state, log=state.parent / f"{state.name}.log", **settings)
        self.environment |= UNPREPARED

    def get(self, path: str, **headers: str) -> httpx.Response:
        """GET a route."""
        return httpx.get(self.url + path, headers=headers, timeout=10)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """POST a route."""
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60)

    def delete(self, path: str, **headers: str) -> httpx.Response:
        """DELETE a route."""
        return httpx.delete(self.url + path, headers=headers, timeout=60)

    def kill_engines(self) -> None:
        """Kill all engines at once, as the gateway sees it: no request moves from the first to the next in between."""
        engines = self.engines()
        self.process.suspend()
        try:
            for engine in engines:
                with suppress(psutil.NoSuchProcess):
                    engine.kill()
        finally:
            self.process.resume()

    def prompt_workers(self) -> list[psutil.Process]:
        """Return the processes that encode prompts, without their host."""
        hosts = [child for child in self.process.children() if "gateway.prompts.worker" in child.cmdline()]
        return [worker for host in hosts for worker in host.children()]

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend the engines that run now, so that no answer ends within the block."""
        engines = self.engines()
        for engine in engines:
            engine.suspend()
        try:
            yield
        finally:
            for engine in engines:
                with suppress(psutil.NoSuchProcess):
                    engine.resume()

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
        """Events as they arrive; Any spares callers to narrow the client's union of 60 classes."""
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
