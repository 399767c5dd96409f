"""The effect of fifty concurrent hostile requests on one client that reads a stream.

python -m benchmarks.attacks [--model standin]: gaps between the deltas of one stream, calm and while each of the other
connections sends a message of 1 MiB that takes long to tokenize. The attackers run in a separate process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from typing import Final

import uvloop
from websockets.asyncio.client import connect

from benchmarks.clients import Samovar, Turn
from benchmarks.command import leave_on_sigterm, option_parser
from benchmarks.figures import Figure, publish
from benchmarks.loads import Subject, subject
from benchmarks.machine import machine
from benchmarks.runs import percentile
from benchmarks.servers import Server, samovar

ATTACKERS: Final = 50
SECONDS: Final = 10.0
STREAM: Final = (48, 1500)
"""Tokens of the reader's prompts and answers, which run one after the other."""
MEBIBYTE: Final = (1 << 20) - 300
TEXTS: Final = ("a" + " " * MEBIBYTE + "b", "x" * MEBIBYTE, "你" * (MEBIBYTE // 3), "Is tea hot? " * (MEBIBYTE // 12))
GOAL: Final = 2.0


async def attack(port: int, number: int) -> None:
    """Send one text after the other on one connection until it closes."""
    message = {"type": "response.create", "input": TEXTS[number % len(TEXTS)], "truncation": "auto"}
    async with connect(f"ws://127.0.0.1:{port}/v1/responses", max_size=None, compression=None) as socket:
        while True:
            await socket.send(json.dumps(message))
            while json.loads(await socket.recv())["type"] not in ("error", "response.created"):
                pass


async def attack_all(port: int) -> None:
    """Run all attackers for SECONDS. Raises TimeoutError."""
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(attack(port, number) for number in range(ATTACKERS)), return_exceptions=True)


async def read(server: Server, what: Subject, done: asyncio.Event) -> list[Turn]:
    """Read one answer after the other until `done`."""
    turns: list[Turn] = []
    async with Samovar(server).open("", what.bias) as session:
        while not done.is_set():
            turns.append(await session.ask(f"Is tea number {len(turns)} hot?", STREAM[1]))
    return turns


async def measure(server: Server, what: Subject) -> list[Figure]:
    """Measure the gaps of one reader, calm and during the attack."""
    windows, done = [], asyncio.Event()
    reader = asyncio.create_task(read(server, what, done))
    await asyncio.sleep(3.0)  # until the engine is loaded
    clock = asyncio.get_running_loop().time
    for attacked in (False, True):
        began = clock()
        if attacked:
            command = [sys.executable, "-m", "benchmarks.attacks", "--port", str(server.port)]
            await (await asyncio.create_subprocess_exec(*command)).wait()
        else:
            await asyncio.sleep(SECONDS)
        windows.append((began, clock()))
    done.set()
    turns = await reader
    calm, attacked_gaps = (
        [
            (later - earlier) * 1e3
            for turn in turns
            for earlier, later in itertools.pairwise(turn.deltas)
            if begin < earlier and later < end
        ]
        for begin, end in windows
    )
    usual = percentile(calm, 0.99)

    def figure(name: str, value: float, unit: str = "ms", goal: float | None = None) -> Figure:
        return Figure(benchmark="attacks", name=f"{what.name}: {name}", values=[value], unit=unit, goal=goal)

    return [
        figure("p99 gap of a reader, calm", usual),
        figure(f"p99 gap with {ATTACKERS} attackers", percentile(attacked_gaps, 0.99)),
        figure(f"longest gap with {ATTACKERS} attackers", max(attacked_gaps)),
        figure("longest gap over the calm p99", max(attacked_gaps) / usual, "x", GOAL),
    ]


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="embedded")
    parser.add_argument(
        "--port", type=int, help=argparse.SUPPRESS
    )  # of the gateway under attack, for the attackers' process
    options = parser.parse_args()
    if options.port:
        try:
            asyncio.run(attack_all(options.port))
        except TimeoutError:
            return
    leave_on_sigterm()
    print(machine(), flush=True)
    model = subject(options.model)
    with samovar(model.path) as server:
        publish(uvloop.run(measure(server, model)))


if __name__ == "__main__":
    main()
