"""Encoding ahead: how much sooner does an answer start if its long question is encoded while the user still types?

python -m benchmarks.ahead [--model standin] [--rounds 5]: a user pastes a text of 1 000 tokens, types 20 more for five
seconds and sends both. Rounds alternate between encoding ahead, as the chat page does, and not.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

import msgspec
import uvloop

from benchmarks.clients import Samovar, SamovarSession
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import Subject, subject
from benchmarks.servers import samovar

PASTED, TYPED, ANSWER = 1000, 20, 8
PAUSE_SECONDS: Final = 0.5
"""Time without typing after which the page encodes ahead."""
TYPING_SECONDS: Final = 5.0
GOAL: Final = 0.2
"""Upper bound for the time to first token with encoding ahead, relative to the time without."""


class Reader:
    """A user who pastes, types and sends."""

    def __init__(self, subject: Subject, side: Samovar) -> None:
        """Write messages in `subject`'s vocabulary to the gateway `side`."""
        self._subject = subject
        self._side = side
        self._messages = 0

    async def send(self, *, ahead: bool) -> float:
        """Write and send a new message, and return the seconds to the first token. Raises TurnFailedError."""
        self._messages += 1
        source = random.Random(self._messages)
        pasted, typed = (self._subject.text(tokens, source) for tokens in (PASTED, TYPED))
        async with self._side.open("", self._subject.bias) as session:
            assert isinstance(session, SamovarSession)  # noqa: S101 - Samovar's session type
            until = time.monotonic() + TYPING_SECONDS
            if ahead:
                await asyncio.sleep(PAUSE_SECONDS)
                await encode(session, pasted, until)
            await asyncio.sleep(until - time.monotonic())
            return (await session.ask(f"{pasted} {typed}", ANSWER)).first


async def encode(session: SamovarSession, words: str, until: float) -> None:
    """Encode `words` ahead as the chat page does, and wait for the end of that, at most until `until`."""
    message = {"role": "user", "content": words}
    request = {"type": "response.create", "input": [message], "generate": False, "store": False, **session.fields}
    await session.socket.send(msgspec.json.encode(request).decode())
    async with asyncio.timeout(until - time.monotonic()):
        while msgspec.json.decode(await session.socket.recv())["type"] != "response.completed":
            pass


async def measure(name: str, reader: Reader, rounds: int) -> list[Figure]:
    """Measure both ways in alternation, with the engines loaded. Raises TurnFailedError, TimeoutError."""
    await reader.send(ahead=False)
    pairs = [(await reader.send(ahead=False), await reader.send(ahead=True)) for _ in range(rounds)]

    def figure(what: str, values: list[float], unit: str, goal: float | None = None) -> Figure:
        label = f"{name}, {PASTED} tokens pasted, {TYPING_SECONDS:g} s of typing: {what}"
        return Figure(benchmark="ahead", name=label, values=values, unit=unit, goal=goal)

    return [
        figure("first token", [plain for plain, _ in pairs], "s"),
        figure("first token, encoded ahead", [ahead for _, ahead in pairs], "s"),
        figure("with over without encoding ahead", [ahead / plain for plain, ahead in pairs], "x", GOAL),
    ]


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="standin")
    parser.add_argument("--rounds", type=int, default=5)
    options = start_benchmark(parser)
    model = subject(options.model)
    with samovar(model.path) as server:
        publish(uvloop.run(measure(model.name, Reader(model, Samovar(server)), options.rounds)))


if __name__ == "__main__":
    main()
