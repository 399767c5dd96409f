"""What tests do with the chat page in a browser, and a gateway that is played where the real one behaves too well."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Self

from playwright.async_api import Locator, Page, WebSocketRoute, expect

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ANSWER_MS = 120_000  # an answer of the embedded model while others compute: threads that share a core crawl
SOCKET = re.compile(r"/v1/responses$")
LONG = "Write a very long story about a samovar, with many chapters and every detail."

OpenPage = Callable[..., Awaitable[Page]]
Play = Callable[[WebSocketRoute], None]
Prepare = Callable[[Page], Awaitable[None]]
"""What a test does with a page before its address is opened."""


def messages(page: Page, role: str) -> Locator:
    """All messages of `user` or `assistant`, oldest first."""
    return page.locator(f'[data-testid="message"][data-role="{role}"]')


def conversations(page: Page) -> Locator:
    """The entries of the list, newest first."""
    return page.get_by_test_id("conversation")


async def ask(page: Page, words: str) -> Locator:
    """Sends a message as a reader does; gives its answer, which is still on its way."""
    before = await messages(page, "assistant").count()
    await page.get_by_test_id("composer").fill(words)
    await page.get_by_test_id("composer").press("Enter")
    await expect(messages(page, "assistant")).to_have_count(before + 1)
    return messages(page, "assistant").nth(before)


async def first_words_shown(page: Page) -> None:
    """Waits for the first words of an answer that is still on its way."""
    arriving = page.locator('[data-state="streaming"] .message-text').filter(has_text=re.compile(r"\S"))
    await arriving.wait_for(timeout=ANSWER_MS)


async def ended(answer: Locator, state: str = "done") -> None:
    """Waits until the answer is whole, and expects it to be so in this way."""
    await expect(answer).not_to_have_attribute("data-state", "streaming", timeout=ANSWER_MS)
    await expect(answer).to_have_attribute("data-state", state)


async def expect_soon(page: Page, holds: Callable[[], bool]) -> None:
    """Wait for a condition that no element shows."""
    for _ in range(ANSWER_MS // 100):
        if holds():
            return
        await page.wait_for_timeout(100)
    raise AssertionError("it did not come")


async def count_of(answer: Locator, name: str) -> int:
    """One of the answer's token counts: `prompt`, `cached` or `output`."""
    return int(await answer.get_by_test_id("stats").get_attribute(f"data-{name}") or 0)


async def name_model(page: Page, name: str, **facts: Any) -> None:
    """Let the page see a model of this name, with these facts about it."""
    model = {"id": name, "object": "model", "created": 0, "owned_by": "samovar", "languages": ["en", "zh"], **facts}
    await page.route(re.compile("/v1/models$"), lambda route: route.fulfill(json={"object": "list", "data": [model]}))


class Wire:
    """A network between browser and gateway that can be cut, or drop everything without a word."""

    def __init__(self, port: int) -> None:
        """Lead to this port."""
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._passes = asyncio.Event()
        self._passes.set()
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cut, and listen no more."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections; new ones are welcome."""
        for writer in self._writers:
            if (plug := writer.get_extra_info("socket")) is not None:
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def stall(self) -> None:
        """Forward nothing any more, as a link that drops packets: all connections stay open."""
        self._passes.clear()

    def flow(self) -> None:
        """Forward again."""
        self._passes.set()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # the gateway is away
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
        self._writers -= both

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class PlayedGateway:
    """Says what a test wants over the page's socket, and remembers what the page asked."""

    def __init__(self, answer: Callable[[PlayedGateway, dict[str, Any]], None]) -> None:
        """`answer` is called with every request of the page."""
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.ahead: list[dict[str, Any]] = []
        self.titles: list[dict[str, Any]] = []
        self.sockets: list[WebSocketRoute] = []
        self.pings = 0
        self.answers_pings = True
        self._sequence = -1
        self._lane = ""  # of the newest request, as every event of its answer names it

    def __call__(self, connection: WebSocketRoute) -> None:
        """Takes a connection of the page."""
        self.sockets.append(connection)
        connection.on_message(self.receive)

    def receive(self, frame: str | bytes) -> None:
        """Takes a request of the page."""
        request = json.loads(frame)
        if request["type"] == "samovar.ping":
            self.pings += 1
            if self.answers_pings:
                self.sockets[-1].send(json.dumps({"type": "samovar.pong"}))
            return
        if request.get("generate") is False:
            self.ahead.append(request)  # and never comes to an end
            return
        if request.get("when_idle"):
            self.titles.append(request)
            return
        self._lane = request.pop("stream_id", self._lane)
        self.asked.append(request)
        self.answer(self, self.asked[-1])

    def say(self, kind: str, **fields: Any) -> None:
        """Sends an event on the newest connection, numbered as docs/api.md says."""
        self._sequence = 0 if kind == "response.created" else self._sequence + 1
        event = {"type": kind, "sequence_number": self._sequence, "stream_id": self._lane, **fields}
        self.sockets[-1].send(json.dumps(event))

    def say_of(self, number: int, kind: str, status: str, **fields: Any) -> None:
        """Sends an event that carries response `number`, which is in `status`."""
        self.say(kind, response={"id": f"resp_{number}", "object": "response", "status": status}, **fields)

    def delta(self, words: str) -> None:
        """Sends more of the answer."""
        self.say("response.output_text.delta", item_id="msg", output_index=0, content_index=0, delta=words)

    def keep_alive(self) -> None:
        """Sends the event that has no number, as while a request waits for its lane."""
        self.sockets[-1].send(json.dumps({"type": "keepalive", "stream_id": self._lane}))

    def begin(self, words: str) -> None:
        """Sends an answer to the newest request as far as its first words."""
        number = len(self.asked)
        self.say_of(number, "response.created", "in_progress")
        self.say_of(number, "response.in_progress", "in_progress")
        self.delta(words)

    def complete(self, words: str) -> None:
        """Sends a whole answer to the newest request."""
        self.begin(words)
        self.say_of(len(self.asked), "response.completed", "completed")

    def refuse(self, code: str, message: str = "", **fields: Any) -> None:
        """Refuses the newest request."""
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": None}
        self.say("error", status=400, error=error, **fields)


SHORT = 24
"""Tokens of an answer whose text does not matter."""


def short_answers(connection: WebSocketRoute) -> None:
    """Pass everything on to the real gateway, but limit answers to SHORT tokens, except stories: tests stop these."""
    server = connection.connect_to_server()

    def send(frame: str | bytes) -> None:
        request = json.loads(frame)
        if request["type"] == "response.create" and request.get("generate") is not False and request["input"] != LONG:
            request["max_output_tokens"] = SHORT
        server.send(json.dumps(request))

    connection.on_message(send)


def saying(words: str) -> PlayedGateway:
    """A gateway that answers everything with these words."""
    return PlayedGateway(lambda gateway, _: gateway.complete(words))
