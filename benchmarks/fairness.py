"""Many concurrent users: does a flood delay others, do equal users get equal shares, are wait estimates accurate?

python -m benchmarks.fairness [--only flood shares stream]: starts gateways with the embedded model; prints how long one
user's single requests wait during another's 200, Jain's index over ten equal users, the ratio of estimated to actual
waits, and the gateway's own processor time for tokens streamed over 50 connections.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.command import leave_on_sigterm, option_parser
from benchmarks.figures import Figure, publish
from benchmarks.machine import embedded, machine
from benchmarks.servers import Server, samovar
from gateway.config.other_load import OtherLoad

FLOOD: Final = 200
SINGLES: Final = 8
TOKENS: Final = 48
USERS: Final = 10
SHARE_SECONDS: Final = 45.0
CONNECTIONS: Final = 50
LIFTED: Final = ("user_concurrency", "connections_per_user", "connections_per_address")
ENDINGS: Final = ("response.completed", "response.incomplete", "response.failed", "error")


@dataclass
class Turn:
    """One request as its client saw it; times are monotonic seconds."""

    asked: float = field(default_factory=time.monotonic)
    began: float = 0.0
    ended: float = 0.0
    tokens: int = 0
    estimate: float | None = None
    """Estimated wait of the first `response.queued` event, in seconds."""


@contextmanager
def gateway(users: list[str]) -> Iterator[tuple[Server, dict[str, str]]]:
    """Run a gateway with API keys for `users`, who may have any number of requests in flight."""
    with tempfile.TemporaryDirectory(prefix="samovar-bench-") as folder:
        keys = {user: _key(Path(folder), user) for user in users}
        unlimited: dict[str, Any] = dict.fromkeys((*LIFTED, "queue_limit"), 1000)
        with samovar(embedded(), state=Path(folder), queue_timeout=600, **unlimited) as server:
            yield server, keys


def _key(state: Path, user: str) -> str:
    command = [sys.executable, "-m", "gateway.cli", "keys", "add", user, f"--state-dir={state}"]
    return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()


@asynccontextmanager
async def socket(server: Server, key: str) -> AsyncIterator[ClientConnection]:
    """Open a connection of the user with `key`."""
    headers = {"Authorization": f"Bearer {key}"}
    async with connect(server.address, additional_headers=headers, compression=None) as connection:
        yield connection


async def turn(connection: ClientConnection, tokens: int) -> Turn:
    """Send a request and read it to its end."""
    seen = Turn()
    text = f"Tell me story number {random.randrange(10**6)}."
    bias = {str(token): -100 for token in range(3)}  # includes the end-of-turn token, so that answers have full length
    request = {"input": text, "max_output_tokens": tokens, "store": False, "logit_bias": bias}
    await connection.send(json.dumps({"type": "response.create", **request}))
    async for frame in connection:
        event: dict[str, Any] = json.loads(frame)
        if event["type"] == "response.queued" and seen.estimate is None:
            seen.estimate = event["estimated_wait_seconds"]
        elif event["type"] == "response.in_progress":
            seen.began = time.monotonic()
        elif event["type"] in ENDINGS:
            if "response" not in event or event["type"] == "response.failed":
                raise SystemExit(str(event))
            seen.ended, seen.tokens = time.monotonic(), event["response"]["usage"]["output_tokens"]
            return seen
    raise SystemExit("the connection ended")


async def one(server: Server, key: str, tokens: int) -> Turn:
    """Send a request on a separate connection."""
    async with socket(server, key) as connection:
        return await turn(connection, tokens)


async def flood(server: Server, keys: dict[str, str]) -> tuple[list[Turn], list[Turn]]:
    """Return (turns of the flood, turns of a user who sends single requests meanwhile)."""
    tasks = [asyncio.create_task(one(server, keys["flood"], TOKENS)) for _ in range(FLOOD)]
    await asyncio.sleep(3)
    singles = [await one(server, keys["anna"], TOKENS) for _ in range(SINGLES)]
    return await asyncio.gather(*tasks), singles


async def shares(server: Server, keys: dict[str, str]) -> tuple[dict[str, int], list[Turn]]:
    """Return (tokens by user, turns) of users with three concurrent requests each, for answers of several lengths."""
    until = time.monotonic() + SHARE_SECONDS
    tokens = dict.fromkeys(keys, 0)
    turns = []

    async def user(name: str) -> None:
        async with socket(server, keys[name]) as connection:
            while time.monotonic() < until:
                seen = await turn(connection, random.choice((8, 24, 48, 96)))
                if seen.ended < until:
                    turns.append(seen)
                    tokens[name] += seen.tokens

    await asyncio.gather(*(user(name) for name in keys for _ in range(3)))
    return tokens, turns


async def stream(server: Server, keys: dict[str, str]) -> tuple[float, float, float]:
    """Return (tokens per second over 50 connections, cores used by the gateway, cores used by other processes)."""
    key = next(iter(keys.values()))
    await one(server, key, TOKENS)
    other_load, began, cpu = OtherLoad(server.process), time.monotonic(), sum(server.process.cpu_times()[:2])
    turns = await asyncio.gather(*(one(server, key, 3 * TOKENS) for _ in range(CONNECTIONS)))
    seconds = time.monotonic() - began
    used = sum(server.process.cpu_times()[:2]) - cpu
    return sum(turn.tokens for turn in turns) / seconds, used / seconds, other_load.cores()


def measure_flood() -> None:
    """Measure whether a flood delays another user."""
    with gateway(["flood", "anna"]) as (server, keys):
        turns, singles = uvloop.run(flood(server, keys))
    overtaken = [sum(single.asked < turn.began < single.began for turn in turns) for single in singles]
    waits = [single.began - single.asked for single in singles]
    running = [turn.ended - turn.began for turn in turns]
    print(f"\nA flood of {FLOOD} requests with {SINGLES} single ones, {TOKENS} tokens each")
    print(f"  requests of the flood that started while a single one waited: {sorted(overtaken)}")
    publish(
        [
            Figure(benchmark="fairness", name="a turn of the flood", values=running, unit="s"),
            Figure(
                benchmark="fairness",
                name="wait of a single request during a flood of 200, in turns",
                values=[wait / statistics.median(running) for wait in waits],
                unit="turns",
                goal=1.0,
            ),
        ]
    )


def measure_shares() -> None:
    """Measure whether equal users get equal shares and accurate estimates."""
    with gateway([f"user{number}" for number in range(USERS)]) as (server, keys):
        tokens, turns = uvloop.run(shares(server, keys))
    jain = sum(tokens.values()) ** 2 / (USERS * sum(value**2 for value in tokens.values()))
    print(f"\n{USERS} equal users for {SHARE_SECONDS:g} s, three requests each at a time, 8 to 96 tokens")
    print(f"  tokens {min(tokens.values())} to {max(tokens.values())}")
    name = "Jain's index of tokens over ten equal users"
    publish([Figure(benchmark="fairness", name=name, values=[jain], unit="", goal=0.98, high=True)])
    ratios = [turn.estimate / (turn.began - turn.asked) for turn in turns if turn.estimate is not None]
    if len(ratios) > 1:
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"  estimated ÷ actual wait of {len(ratios)} requests that waited: {middle:.2f} "
            f"(quartiles {low:.2f}, {high:.2f})"
        )


def measure_stream() -> None:
    """Measure the processor time of the gateway itself."""
    with gateway(["anna"]) as (server, keys):
        rate, cores, others = uvloop.run(stream(server, keys))
    print(f"\n{rate:.0f} tokens/s over {CONNECTIONS} connections, set-up and prompts included")
    print(f"  other processes kept {others:.2f} cores busy")
    name = f"gateway: share of a core per 100 tokens/s over {CONNECTIONS} connections"
    publish([Figure(benchmark="fairness", name=name, values=[100 * cores / rate * 100], unit="%", goal=5.0)])


PARTS: Final = {"flood": measure_flood, "shares": measure_shares, "stream": measure_stream}


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=[*PARTS])
    options = parser.parse_args()
    leave_on_sigterm()
    print(f"embedded model, {machine()}")
    for part in options.only:
        PARTS[part]()


if __name__ == "__main__":
    main()
