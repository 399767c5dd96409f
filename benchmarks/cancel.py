"""Time from a client's cancel to the terminal event of the answer.

python -m benchmarks.cancel [--streams 1 8]: runs that many answers of the embedded model at once and cancels one of
them in the middle. The time until its terminal event arrives is an upper bound for how long the engine continues to
compute the answer. An engine aborts only between two steps, so the goal allows one decode step, as measured by the
engine's own metrics. The step is added to the goal and not subtracted from the latency: a cancel that arrives late in a
step ends sooner than a whole step, and the difference of the two would be negative.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.machine import embedded
from benchmarks.servers import Server, samovar
from gateway.cli.readings import Source

ROUNDS: Final = 20
WINDOW: Final = 1.0
"""Seconds over which steps are timed while the engine only decodes, as prompt steps take longer."""
GOAL: Final = 20.0
"""Milliseconds allowed beyond one decode step."""
UNLIMITED: Final = 100_000


async def ask(socket: ClientConnection) -> None:
    """Start an answer that runs until it is cancelled or reaches its limit."""
    bias = {str(token): -100 for token in range(3)}  # includes the end-of-turn token
    request = {"input": f"Tell me story number {random.randrange(10**6)}.", "max_output_tokens": 3500}
    await socket.send(json.dumps({"type": "response.create", "logit_bias": bias, **request}))


async def cancelled(socket: ClientConnection, meanwhile: Callable[[], Awaitable[None]]) -> float:
    """Return the milliseconds from the cancel to the terminal event.

    The cancel is sent after a few deltas, once `meanwhile` has returned.
    """
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
    """Wait for a random time, so that the cancel arrives at any moment of a step."""
    await asyncio.sleep(random.uniform(0, 0.03))


async def drain(socket: ClientConnection) -> None:
    """Read and discard the events of a concurrent answer."""
    async for _ in socket:
        pass


def steps(server: Server) -> tuple[float, float]:
    """Return the total (seconds, number) of engine steps so far."""
    reading = Source(server.url).read(time.monotonic())
    seconds, count = (reading.sum(f"samovar_engine_step_seconds_{part}") or 0.0 for part in ("sum", "count"))
    return seconds, count


async def measure(server: Server, streams: int) -> None:
    """Cancel one of `streams` concurrent answers, ROUNDS times."""
    sockets = [await connect(server.address, compression=None) for _ in range(streams)]
    others = []
    for socket in sockets[1:]:
        await ask(socket)
        others.append(asyncio.create_task(drain(socket)))
    await cancelled(sockets[0], anywhere)  # loads an engine, and lets the other answers start
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
    await asyncio.gather(*others)
    publish(
        [
            Figure(benchmark="cancel", name=f"{streams} answers: a step", values=[step], unit="ms"),
            Figure(
                benchmark="cancel",
                name=f"{streams} answers: cancel to terminal event",
                values=waits,
                unit="ms",
                goal=GOAL + step,
            ),
        ]
    )


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    options = start_benchmark(parser)
    for streams in options.streams:
        with samovar(embedded(), messages_per_minute=UNLIMITED) as server:
            uvloop.run(measure(server, streams))


if __name__ == "__main__":
    main()
