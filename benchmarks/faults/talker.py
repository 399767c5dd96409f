"""A client that holds conversations whatever happens to the server, and reads every answer to its end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from benchmarks.faults.ledger import Ledger
from benchmarks.faults.questions import Question

ANSWER_SECONDS: Final = 90.0
"""Time after which an answer is stuck: a hung engine is detected after half of it."""
AGAIN_SECONDS: Final = 0.1
"""Seconds between attempts to reach a gateway that is down."""
KEPT_SECONDS: Final = 3.0
"""Text received this long before a gateway's end must be on disk: running answers are stored about once a second."""
TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
LOST: Final = (ConnectionClosed, OSError, InvalidHandshake, InvalidMessage, TimeoutError)


class Talker:
    """One client with at most one connection."""

    def __init__(
        self, address: str, ledger: Ledger, scripts: Sequence[Sequence[Question]], draw: random.Random
    ) -> None:
        """Hold the conversations of `scripts` at `address`, a WebSocket URL, in an order chosen by `draw`."""
        self._address = address
        self._ledger = ledger
        self._scripts = scripts
        self._draw = draw
        self._socket: ClientConnection | None = None
        self.asked: float | None = None
        """Monotonic time of the pending request; None without one."""
        self.flighty = 0.0
        """Probability of losing the connection during an answer and resuming it."""

    async def talk(self, until: float) -> None:
        """Hold conversations until the monotonic time `until`, and wait for the last answer."""
        try:
            while time.monotonic() < until:
                script, whims = self._draw.choice(self._scripts), random.Random(self._draw.random())
                await self._converse(script, whims, until)
        finally:
            self.asked = None
            await self._leave()

    async def _converse(self, script: Sequence[Question], whims: random.Random, until: float) -> None:
        """Hold one conversation, with its own generator `whims`, so that an early end does not affect the next one."""
        previous, alike = None, True
        for question in script:
            if time.monotonic() > until:
                return
            answer = _Answer(question)
            self.asked = answer.asked
            leaving = answer.size_at_leaving(whims) if whims.random() < self.flighty else None
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    response = await self._receive(answer, previous, leaving)
            except TimeoutError:
                self._ledger.stuck(f"an answer had no end after {ANSWER_SECONDS:.0f} s")
                await self._leave()
                return
            if response is None:
                return
            if (response["incomplete_details"] or {}).get("reason") == "interrupted":
                alike = False
                self._ledger.cut_off(question, answer.text, response, due=answer.due)
            else:
                if answer.first is not None:
                    self._ledger.firsts.append(answer.first - answer.asked)
                whole = not answer.returned  # resuming an ended answer delivers only its last event
                alike = self._ledger.ended(question, answer.text, response, comparable=alike, whole=whole)
            previous = response["id"]

    async def _receive(self, answer: _Answer, previous: str | None, leaving: int | None) -> dict[str, Any] | None:
        """Return the response in the terminal event; None if it was refused, failed, or never started.

        After `leaving` letters, the connection is lost once.
        """
        while True:
            try:
                socket = await self._connected()
                await socket.send(answer.request(previous))
                while True:
                    event = msgspec.json.decode(await socket.recv())
                    if event["type"] == "error":
                        await self._refused(event["error"], answer)
                        return None
                    answer.receive(event)
                    if event["type"] == "response.failed":
                        await self._refused(event["response"]["error"], answer)
                        return None
                    if event["type"] in TERMINAL:
                        self._ledger.row.resumed += answer.returned
                        self._note_disorder(answer)
                        return dict(event["response"])
                    if leaving is not None and len(answer.text) > leaving:
                        leaving = None
                        socket.transport.abort()
            except LOST:
                self._socket = None
                if answer.id is None:  # nothing has been acknowledged yet
                    return None
                answer.lose(time.monotonic())
                await asyncio.sleep(AGAIN_SECONDS)

    async def _refused(self, error: dict[str, Any], answer: _Answer) -> None:
        if answer.returned and error.get("param") == "response_id":  # its gateway ended before it stored the answer
            self._ledger.not_kept(due=answer.due)
            return
        self._ledger.refused(error["code"], error["message"])
        if "retry_after" in error:  # penalized: another connection is another user
            await self._leave()
        await asyncio.sleep(AGAIN_SECONDS)

    def _note_disorder(self, answer: _Answer) -> None:
        if answer.disorder:
            self._ledger.row.blame("events came out of order")

    async def _connected(self) -> ClientConnection:
        while self._socket is None:
            try:
                self._socket = await connect(self._address, open_timeout=10, ping_interval=None, compression=None)
            except LOST:
                await asyncio.sleep(AGAIN_SECONDS)
        return self._socket

    async def _leave(self) -> None:
        if self._socket is not None:
            with suppress(*LOST):
                await self._socket.close()
            self._socket = None


class _Answer:
    """One answer, received over one or more connections."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self.id: str | None = None
        self.text = ""
        self.asked = time.monotonic()
        self.first: float | None = None
        """Arrival time of the first text."""
        self.returned = False
        self.disorder = False
        self.due = ""
        """Text that a gateway that ended when the connection was lost must have stored."""
        self._last = -1
        self._received: list[tuple[float, int]] = []
        """(Time, letters so far) of each delta on the current connection."""

    def request(self, previous: str | None) -> str:
        """Return the request to send: the question, or a resume if the answer has started."""
        if self.id is None:
            message = {"type": "response.create", "previous_response_id": previous, **self._question.fields}
        else:
            message = {"type": "response.resume", "response_id": self.id, "starting_after": self._last}
        return msgspec.json.encode(message).decode()

    def size_at_leaving(self, draw: random.Random) -> int:
        """Return the letters after which a flighty client loses its connection."""
        return draw.randrange(1, self._question.fields["max_output_tokens"])

    def receive(self, event: dict[str, Any]) -> None:
        """Process the next event."""
        self.disorder |= event["sequence_number"] <= self._last
        self._last = event["sequence_number"]
        if event["type"] == "response.created":
            self.id = event["response"]["id"]
        elif event["type"] == "response.output_text.delta":
            self.text += event["delta"]
            now = time.monotonic()
            self._received.append((now, len(self.text)))
            self.first = self.first or now

    def lose(self, now: float) -> None:
        """Record the loss of the connection. If it delivered nothing, its gateway may have ended long before."""
        self.returned = True
        for when, size in self._received:
            if when <= now - KEPT_SECONDS:
                self.due = self.text[:size]
        self._received.clear()
