"""From a client's cancel to the end of its answer: how soon is an engine free of what nobody wants?

python -m benchmarks.cancel [--streams 1 8]: answers of the embedded model run, so many at once; one is cancelled in its
middle, and the time until its terminal event comes is an upper bound of what its engine went on for. A step of the
engine, as its own metrics have it, is subtracted: the cancel can come at any moment of one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.figures import Figure, tell
from benchmarks.machine import embedded, machine
from benchmarks.servers import Server, leave_on_sigterm, samovar

ROUNDS: Final = 20
WINDOW: Final = 1.0
"""Seconds over which steps are timed while answers only grow: those of prompts are longer."""
GOAL: Final = 20.0
"""Milliseconds beyond a step."""
UNLIMITED: Final = 100_000


async def ask(socket: ClientConnection) -> None:
    """Begin an answer that ends only when it is told to."""
    bias = {str(token): -100 for token in range(3)}  # the end of a turn is among them
    request = {"input": f"Tell me story number {random.randrange(10**6)}.", "max_output_tokens": 3500}
    await socket.send(json.dumps({"type": "response.create", "logit_bias": bias, **request}))


async def cancelled(socket: ClientConnection, meanwhile: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds from the cancel, after a few deltas and what is done `meanwhile`, to the terminal event."""
    await ask(socket)
    name, deltas, sent = "", 0, 0.0
    async for frame in socket:
        event: dict[str, Any] = json.loads(frame)
        name = name or event["response"]["id"]
        deltas += event["type"] == "response.output_text.delta"
        if deltas > 5 and not sent:
            await meanwhile()
            sent = time.perf_counter()
            await socket.send(json.dumps({"type": "response.cancel", "response_id": name}))
        elif event["type"] == "response.incomplete":
            return 1000 * (time.perf_counter() - sent)
        elif event["type"] in ("response.completed", "response.failed", "error"):
            raise SystemExit(f"the answer was not cancelled: {event}")
    raise SystemExit("the connection ended")


async def anywhere() -> None:
    """Let the cancel come at any moment of a step."""
    await asyncio.sleep(random.uniform(0, 0.03))


async def drain(socket: ClientConnection) -> None:
    """Read along with an answer that runs beside."""
    async for _ in socket:
        pass


def steps(server: Server) -> tuple[float, float]:
    """(seconds, number) of all steps so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = [re.search(rf"^samovar_engine_step_seconds_{what} (\S+)", text, re.MULTILINE) for what in ("sum", "count")]
    seconds, count = (float(each[1]) if each else 0.0 for each in found)
    return seconds, count


async def measure(server: Server, streams: int) -> None:
    """Cancel one of so many answers, again and again."""
    url = f"ws://127.0.0.1:{server.port}/v1/responses"
    sockets = [await connect(url, compression=None) for _ in range(streams)]
    beside = []
    for socket in sockets[1:]:
        await ask(socket)
        beside.append(asyncio.create_task(drain(socket)))
    await cancelled(sockets[0], anywhere)  # loads an engine, and lets the others begin
    step = 0.0

    async def time_steps() -> None:
        nonlocal step
        before = await asyncio.to_thread(steps, server)
        await asyncio.sleep(WINDOW)
        after = await asyncio.to_thread(steps, server)
        step = 1000 * (after[0] - before[0]) / max(1.0, after[1] - before[1])

    await cancelled(sockets[0], time_steps)
    waits = [await cancelled(sockets[0], anywhere) for _ in range(ROUNDS)]
    for socket in sockets:
        await socket.close()
    await asyncio.gather(*beside)
    tell(
        [
            Figure(benchmark="cancel", name=f"{streams} answers: a step", values=[step], unit="ms"),
            Figure(
                benchmark="cancel",
                name=f"{streams} answers: cancel to the end beyond a step",
                values=[wait - step for wait in waits],
                unit="ms",
                goal=GOAL,
            ),
        ]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    leave_on_sigterm()
    print(machine())
    for streams in options.streams:
        with samovar(embedded(), messages_per_minute=UNLIMITED) as server:
            uvloop.run(measure(server, streams))


if __name__ == "__main__":
    main()
