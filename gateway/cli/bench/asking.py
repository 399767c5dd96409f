"""A WebSocket client, like a browser, that sends questions of a known length and times the answers."""

from __future__ import annotations

import asyncio
import functools
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from engine import Model
from gateway.cli.bench.gateway import BenchError
from gateway.cli.bench.results import Answer

ANSWER_SECONDS: Final = 300.0
"""Timeout of one answer, in seconds."""
WORDS: Final = 2048
_WORD: Final = re.compile(rb" [a-z]{2,9}")
_DELTA: Final = b'"response.output_text.delta"'


class Questions:
    """Questions of a given length without common prefixes, and a `logit_bias` that prevents early ends of answers."""

    def __init__(self, model: Path) -> None:
        """Collect words that are a single token each. Raises ModelLoadError."""
        self._vocabulary = Model(model, vocab_only=True).vocabulary
        self._words = [word for _, word in zip(range(WORDS), self._single_tokens(), strict=False)]
        ends = filter(self._vocabulary.ends_generation, range(self._vocabulary.size))
        self.bias = {str(token): -100 for token in ends}

    def _single_tokens(self) -> Iterator[str]:
        for token in range(self._vocabulary.size):
            piece = self._vocabulary.bare_piece(token)
            if _WORD.fullmatch(piece) and self._vocabulary.tokenize(piece.decode(), special=False) == [token]:
                yield piece.decode()

    def text(self, tokens: int, seed: str) -> str:
        """Return a question of `tokens` tokens, determined by `seed`."""
        source = random.Random(seed)  # noqa: S311 - not a secret
        words = source.choices(self._words or [" a"], k=tokens)
        # The first word has no leading space, and may take more than one token.
        while len(words) > 1 and len(self._vocabulary.tokenize("".join(words)[1:], special=False)) > tokens:
            words.pop()
        return "".join(words)[1:]


class Conversation:
    """A conversation over one connection: each question follows up on the last answer."""

    def __init__(self, socket: ClientConnection, questions: Questions) -> None:
        """Start a conversation without turns."""
        self._socket = socket
        self._questions = questions
        self._previous: str | None = None

    async def ask(self, tokens: int, answer: int, seed: str) -> Answer:
        """Ask a question of `tokens` tokens for `answer` tokens. Raises BenchError."""
        return await self._request(tokens, seed, max_output_tokens=answer, logit_bias=self._questions.bias)

    async def load(self) -> None:
        """Load an engine without generating an answer. Raises BenchError."""
        await self._request(1, "", generate=False)
        self._previous = None

    async def _request(self, tokens: int, seed: str, **fields: Any) -> Answer:
        text = self._questions.text(tokens, seed)
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
async def conversation(address: str, questions: Questions) -> AsyncIterator[Conversation]:
    """Open a conversation over a new connection. Raises BenchError."""
    try:
        socket = await connect(address, compression=None, max_size=None, proxy=None)
    except (OSError, WebSocketException) as error:
        raise BenchError(f"the gateway cannot be reached: {error}") from error
    async with socket:
        yield Conversation(socket, questions)


async def at_once(address: str, questions: Questions, count: int, tokens: int, answer: int, seed: str) -> list[Answer]:
    """Ask one question in each of `count` conversations at the same time. Raises BenchError."""
    ask = functools.partial(_alone, address, questions, tokens, answer)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(f"{seed} {number}")) for number in range(count)]
    except* BenchError as errors:
        raise BenchError(str(errors.exceptions[0])) from errors
    return [task.result() for task in tasks]


async def _alone(address: str, questions: Questions, tokens: int, answer: int, seed: str) -> Answer:
    async with conversation(address, questions) as alone:
        return await alone.ask(tokens, answer, seed)
