"""The effect of fifty concurrent hostile requests on one client that reads a stream.

python -m benchmarks.attacks [--model standin]: gaps between the deltas of one stream, calm and while each of the other
connections sends messages of almost 1 MiB, one after the other, that take long to tokenize. Each message is refused
after tokenizing, since even its last turn is too long for the context: no attack becomes work for an engine. A message
that is refused for another reason, such as its size, would end the benchmark, because it costs next to nothing.

The attackers run in a separate process, which encodes the messages beforehand. It shares the processor with the
gateway, which real attackers do not, so its processor time is printed, too. Other processes of the machine delay the
reader in both windows; the calm one shows by how much.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import resource
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
REFUSALS: Final = ("context_length_exceeded", "invalid_request")
"""Codes of messages that were refused after tokenizing, or because tokenizing took too long."""
GOAL: Final = 2.0


async def attack(port: int, message: bytes, answers: collections.Counter[str]) -> None:
    """Send a message again and again on one connection until it closes, and count the codes of the refusals."""
    async with connect(f"ws://127.0.0.1:{port}/v1/responses", max_size=None, compression=None) as socket:
        while True:
            await socket.send(message, text=True)
            event = json.loads(await socket.recv())
            answers[event["error"]["code"] if event["type"] == "error" else event["type"]] += 1


async def attack_all(port: int) -> collections.Counter[str]:
    """Run all attackers for SECONDS; return the number of answers by error code, or by type of event."""
    shape = {"type": "response.create", "truncation": "auto"}
    messages = [json.dumps({**shape, "input": text}, ensure_ascii=False).encode() for text in TEXTS]
    answers: collections.Counter[str] = collections.Counter()
    attacks = (attack(port, messages[number % len(messages)], answers) for number in range(ATTACKERS))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*attacks, return_exceptions=True)
    return answers


async def read(server: Server, what: Subject, done: asyncio.Event) -> list[Turn]:
    """Read one answer after the other until `done`."""
    turns: list[Turn] = []
    async with Samovar(server).open("", what.bias) as session:
        while not done.is_set():
            turns.append(await session.ask(f"Is tea number {len(turns)} hot?", STREAM[1]))
    return turns


async def attack_from_outside(port: int) -> tuple[int, float]:
    """Run the attackers in a process; return the number of refused messages and the process's CPU seconds.

    Raises RuntimeError if they did not do what the benchmark claims.
    """
    command = [sys.executable, "-m", "benchmarks.attacks", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    seconds, answers = json.loads((await process.communicate())[0])
    if not answers or answers.keys() - set(REFUSALS):
        raise RuntimeError(f"the attacks were not refused after tokenizing: {answers}")
    return sum(answers.values()), seconds


async def measure(server: Server, what: Subject) -> list[Figure]:
    """Measure the gaps of one reader, calm and during the attack. Raises RuntimeError."""
    windows, done = [], asyncio.Event()
    refused, seconds = 0, 0.0
    reader = asyncio.create_task(read(server, what, done))
    await asyncio.sleep(3.0)  # until the engine is loaded
    clock = asyncio.get_running_loop().time
    for attacked in (False, True):
        began = clock()
        if attacked:
            refused, seconds = await attack_from_outside(server.port)
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
        figure("messages refused after tokenizing", refused, ""),
        figure("processor time of the attackers", seconds, "s"),
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
        answers = asyncio.run(attack_all(options.port))
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps([used.ru_utime + used.ru_stime, answers]))
        return
    leave_on_sigterm()
    print(machine(), flush=True)
    model = subject(options.model)
    with samovar(model.path) as server:
        publish(uvloop.run(measure(server, model)))


if __name__ == "__main__":
    main()
