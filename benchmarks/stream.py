"""One stream from the WebSocket beside a bare llama.cpp loop: how much of the machine's speed reaches a user?

python -m benchmarks.stream: starts a gateway with the embedded model; prints start-up, time to the first token and
tokens a second, interleaved with the bare loop on the same threads, with the spread and the machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time

from websockets.asyncio.client import connect

from benchmarks.decode import NEW_TOKENS, PROMPT, ROUNDS, bare
from benchmarks.machine import cores, embedded, machine
from benchmarks.servers import leave_on_sigterm, samovar
from engine import Model
from gateway import served, settings


async def stream(port: int) -> tuple[float, float]:
    """(seconds to the first delta, tokens a second from there on) of one answer."""
    # Not stored, so that its cells go with the connection: every round begins with an empty cache, like the bare loop.
    request = {"type": "response.create", "input": PROMPT, "max_output_tokens": NEW_TOKENS, "temperature": 0}
    request["store"] = False
    async with connect(f"ws://127.0.0.1:{port}/v1/responses") as socket:
        began, first = time.perf_counter(), 0.0
        await socket.send(json.dumps(request))
        async for frame in socket:
            event = json.loads(frame)
            if event["type"] == "response.output_text.delta":
                latest = time.perf_counter()
                first = first or latest
            elif event["type"] in ("response.completed", "response.incomplete"):
                tokens = event["response"]["usage"]["output_tokens"]
                return first - began, (tokens - 1) / (latest - first)
            elif event["type"] in ("response.failed", "error"):
                raise SystemExit(str(event))
    raise SystemExit("the connection ended")


def line(name: str, values: list[float], unit: str) -> str:
    """Median and spread."""
    return f"{name:34}{statistics.median(values):8.3f} {unit:6} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Measure and print."""
    leave_on_sigterm()
    threads = cores()
    model = Model(embedded())
    prompt = served.load(settings.load({})).prompt.whole([{"role": "user", "content": PROMPT}], date=str)
    starts, colds, warms, bares, streams = [], [], [], [], []
    for _ in range(3):
        with samovar(embedded()) as server:
            starts.append(server.ready_seconds)
            colds.append(asyncio.run(stream(server.port))[0])
    with samovar(embedded()) as server:
        asyncio.run(stream(server.port))
        for _ in range(ROUNDS):
            bares.append(bare(model, prompt, threads))
            ttft, speed = asyncio.run(stream(server.port))
            warms.append(ttft)
            streams.append(speed)
    print(f"{embedded().name}, {machine()}, {ROUNDS} interleaved rounds of {NEW_TOKENS} tokens")
    print(line("start to readyz", starts, "s"))
    print(line("first token, engine load included", colds, "s"))
    print(line("first token, engine loaded", warms, "s"))
    print(line("bare loop", bares, "tok/s"))
    print(line("WebSocket", streams, "tok/s"))
    print(line("ratio", [ours / theirs for ours, theirs in zip(streams, bares, strict=True)], ""))


if __name__ == "__main__":
    main()
