"""A WebSocket client, like a browser, that sends questions of a known length and times the answers."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from gateway.cli.bench.gateway import BenchError
from gateway.cli.bench.results import Answer
from gateway.cli.bench.texts import Texts

ANSWER_SECONDS: Final = 300.0
"""Timeout of one answer, in seconds."""
_DELTA: Final = b'"response.output_text.delta"'


class Conversation:
    """A conversation over one connection: each question follows up on the last answer."""

    def __init__(self, socket: ClientConnection, texts: Texts) -> None:
        """Start a conversation without turns."""
        self._socket = socket
        self._texts = texts
        self._previous: str | None = None

    async def ask(self, tokens: int, answer: int, seed: str) -> Answer:
        """Ask a question of `tokens` tokens for `answer` tokens. Raises BenchError."""
        return await self._request(tokens, seed, max_output_tokens=answer, logit_bias=self._texts.bias)

    async def load(self) -> None:
        """Load an engine without generating an answer. Raises BenchError."""
        await self._request(1, "", generate=False)
        self._previous = None

    async def _request(self, tokens: int, seed: str, **fields: Any) -> Answer:
        text = self._texts.text(tokens, random.Random(seed))  # noqa: S311 - not a secret
        # A conversation of several rounds may exceed a small context.
        fields |= {"previous_response_id": self._previous, "truncation": "auto"}
        request = {"type": "response.create", "input": text, **fields}
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._answer(msgspec.json.encode(request).decode())
        except TimeoutError:
            raise BenchError(f"an answer took longer than {ANSWER_SECONDS:.0f} s") from None
        except (OSError, WebSocketException) as error:
            raise BenchError(f"the connection was lost: {error}") from error

    async def _answer(self, frame: str) -> Answer:
        asked, first = time.perf_counter(), 0.0
        await self._socket.send(frame)
        while True:
            data = await self._socket.recv(decode=False)
            if _DELTA in data:  # not parsed: CPU time of the client is missing for the engines
                first = first or time.perf_counter() - asked
                continue
            event = msgspec.json.decode(data)
            kind, response = event["type"], event.get("response") or {}
            if kind in ("error", "response.failed"):
                error = event.get("error") or response.get("error") or {}
                raise BenchError(f"{error.get('code')}: {error.get('message')}")
            if kind in ("response.completed", "response.incomplete"):
                return self._ended(response, first, time.perf_counter() - asked)

    def _ended(self, response: dict[str, Any], first: float, total: float) -> Answer:
        self._previous = str(response["id"])
        usage = response["usage"]
        cached = usage["input_tokens_details"]["cached_tokens"]
        return Answer(usage["input_tokens"], cached, usage["output_tokens"], first or total, total)


@asynccontextmanager
async def conversation(address: str, texts: Texts) -> AsyncIterator[Conversation]:
    """Open a conversation over a new connection. Raises BenchError."""
    try:
        socket = await connect(address, compression=None, max_size=None, proxy=None)
    except (OSError, WebSocketException) as error:
        raise BenchError(f"the gateway cannot be reached: {error}") from error
    async with socket:
        yield Conversation(socket, texts)


async def at_once(address: str, texts: Texts, count: int, tokens: int, answer: int, seed: str) -> list[Answer]:
    """Ask one question in each of `count` conversations at the same time. Raises BenchError."""
    ask = functools.partial(_alone, address, texts, tokens, answer)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(f"{seed} {number}")) for number in range(count)]
    except* BenchError as errors:
        raise BenchError(str(errors.exceptions[0])) from errors
    return [task.result() for task in tasks]


async def _alone(address: str, texts: Texts, tokens: int, answer: int, seed: str) -> Answer:
    async with conversation(address, texts) as alone:
        return await alone.ask(tokens, answer, seed)
