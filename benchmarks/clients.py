"""Clients for both sides of a comparison. Tokens are counted by the server's usage, times by this machine's clock.

Both clients do as little as possible per token, because their processor time is taken from the engines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import h11
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.loads import Conversation, Load
from benchmarks.servers import Server

TURN_SECONDS: Final = 300.0
"""Timeout of one answer."""
DELTA: Final = b'"response.output_text.delta"'


class TurnFailedError(Exception):
    """The server refused or aborted a turn; the text is its message."""


@dataclass
class Turn:
    """The timing and usage of one answer."""

    asked: float
    """When the request was sent, in seconds of the monotonic clock like all times here."""
    deltas: list[float] = field(default_factory=list)
    """Arrival time of each delta."""
    ended: float = 0.0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    """Tokens, as the server counts them."""

    @property
    def first(self) -> float:
        """Seconds to the first delta."""
        return self.deltas[0] - self.asked


class Session(Protocol):
    """A conversation of several turns."""

    async def ask(self, text: str, answer: int) -> Turn:
        """Send `text` and read an answer of at most `answer` tokens. Raises TurnFailedError."""

    @property
    def place(self) -> Any:
        """The state of the conversation, with which `open` can continue it, also at another server."""


class Side(Protocol):
    """One of the two servers, with a way to open conversations."""

    server: Server

    def open(
        self, system: str, bias: dict[str, float], *, place: Any = None, **fields: Any
    ) -> AbstractAsyncContextManager[Session]:
        """Open a conversation, new or continuing `place`; `fields` are added to each request."""


class Samovar:
    """Samovar over the WebSocket: each turn names the last one and sends only new text."""

    def __init__(self, server: Server) -> None:
        """Connect to the gateway `server`."""
        self.server = server
        self._address = server.address

    @asynccontextmanager
    async def open(
        self, system: str, bias: dict[str, float], *, place: str | None = None, **fields: Any
    ) -> AsyncIterator[Session]:
        """Open a separate connection, as a browser does."""
        async with connect(self._address, compression=None, max_size=None) as socket:
            fields = {"instructions": system, "temperature": 0, "logit_bias": bias, **fields}
            yield SamovarSession(socket, fields, place)


@dataclass
class SamovarSession:
    """Turns of one conversation over one socket."""

    socket: ClientConnection
    fields: dict[str, Any]
    place: str | None
    """Id of the last response."""

    async def ask(self, text: str, answer: int) -> Turn:
        """Send `text` and read the answer. Raises TurnFailedError."""
        request = {"type": "response.create", "input": text, "max_output_tokens": answer, **self.fields}
        frame = msgspec.json.encode({**request, "previous_response_id": self.place}).decode()
        turn = Turn(time.perf_counter())
        async with asyncio.timeout(TURN_SECONDS):
            await self.socket.send(frame)
            while True:
                data = await self.socket.recv(decode=False)
                if DELTA in data:  # most frames are recognized without parsing
                    turn.deltas.append(time.perf_counter())
                elif self._ends(data, turn):
                    return turn

    def _ends(self, data: bytes, turn: Turn) -> bool:
        """Return whether this is the terminal event. Raises TurnFailedError."""
        event = msgspec.json.decode(data)
        if event["type"] in ("error", "response.failed"):
            raise TurnFailedError(data.decode())
        if event["type"] not in ("response.completed", "response.incomplete"):
            return False
        response = event["response"]
        usage = response["usage"]
        turn.ended, self.place = time.perf_counter(), response["id"]
        turn.prompt, turn.output = usage["input_tokens"], usage["output_tokens"]
        turn.cached = usage["input_tokens_details"]["cached_tokens"]
        return True


class ChatCompletions:
    """Chat completions over HTTP and SSE: each turn sends the whole conversation."""

    def __init__(self, server: Server, **fields: Any) -> None:
        """Connect to llama-server, or another server of chat completions; `fields` are added to every request."""
        self.server = server
        self._fields = fields

    @asynccontextmanager
    async def open(
        self, system: str, bias: dict[str, float], *, place: list[dict[str, str]] | None = None, **fields: Any
    ) -> AsyncIterator[Session]:
        """Open a conversation. Each turn opens its own connection, because an idle one may be closed at any time."""
        fields = {"temperature": 0, "logit_bias": bias, **self._fields, **fields}
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
        first = [{"role": "system", "content": system}] if system else []
        yield ChatSession(self.server.port, fields, place or first)


@dataclass
class ChatSession:
    """Turns of one conversation, whose history this client holds."""

    port: int
    fields: dict[str, Any]
    place: list[dict[str, str]]
    """All messages so far."""

    async def ask(self, text: str, answer: int) -> Turn:
        """Send `text` and read the answer. Raises TurnFailedError."""
        self.place.append({"role": "user", "content": text})
        body = msgspec.json.encode({**self.fields, "messages": self.place, "max_tokens": answer})
        turn, parts = Turn(time.perf_counter()), []
        async with asyncio.timeout(TURN_SECONDS):
            async for chunk in self._post(body):
                now = time.perf_counter()
                for choice in chunk["choices"]:
                    if content := choice["delta"].get("content"):
                        parts.append(content)
                        turn.deltas.append(now)
                if usage := chunk.get("usage"):
                    turn.prompt, turn.output = usage["prompt_tokens"], usage["completion_tokens"]
                    turn.cached = usage["prompt_tokens_details"]["cached_tokens"]
        turn.ended = time.perf_counter()
        self.place.append({"role": "assistant", "content": "".join(parts)})
        return turn

    async def _post(self, body: bytes) -> AsyncIterator[Any]:
        """Yield the events of one request. Raises TurnFailedError."""
        http = h11.Connection(h11.CLIENT)
        headers = [("Host", f"127.0.0.1:{self.port}"), ("Content-Type", "application/json"), ("Connection", "close")]
        headers.append(("Content-Length", str(len(body))))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        request = h11.Request(method="POST", target="/v1/chat/completions", headers=headers)
        for event in (request, h11.Data(body), h11.EndOfMessage()):
            writer.write(http.send(event) or b"")
        try:
            async for line in _lines(http, reader):
                if line.startswith(b"data: {"):
                    yield msgspec.json.decode(line[6:])
        finally:
            writer.close()


async def _lines(http: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a response body. Raises TurnFailedError if the status is not 200."""
    status, rest = 0, b""
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await reader.read(1 << 16))
            case h11.Response(status_code=status):
                pass
            case h11.Data(data=data):
                *lines, rest = (rest + data).split(b"\n")
                if status == 200:
                    for line in lines:
                        yield line
            case h11.EndOfMessage():
                if status != 200:
                    raise TurnFailedError(f"{status} {rest.decode(errors='replace')}")
                return
            case h11.ConnectionClosed():
                raise TurnFailedError("the connection was closed")


async def converse(side: Side, conversation: Conversation, load: Load, bias: dict[str, float]) -> list[Turn]:
    """Hold a whole conversation, one turn after the other without a pause."""
    async with side.open(conversation.system, bias) as session:
        return [await session.ask(text, load.answer) for text in conversation.turns]
