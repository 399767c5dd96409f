"""The cost of rendering and tokenizing in prompt workers: the same prompts in this process and through the workers.

python -m benchmarks.hop [--model standin]: short prompts one after the other, alternating between both ways.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import Subject, subject
from engine import Model
from gateway.config.settings import load as settings
from gateway.models.served import load
from gateway.prompts.encoder import Encoder
from gateway.prompts.messages import Encode, Encoded
from gateway.prompts.pool import PromptWorkers

TIMES: Final = 1000
WARM_UP: Final = 50
TEXT: Final = "Is tea"
"""About 30 tokens with the chat template."""
GOAL: Final = 1.0
"""Milliseconds that the workers may add."""


async def measure(what: Subject) -> list[Figure]:
    """Time each way TIMES times."""
    with tempfile.TemporaryDirectory(prefix="samovar-bench-") as folder:
        served = load(settings({"model": str(what.path), "state_dir": Path(folder)}))
    encoder = Encoder(Model(what.path, vocab_only=True).vocabulary, served.template, instructions="")
    workers = PromptWorkers(served.prompts(""))
    task = asyncio.create_task(workers.run())
    here, there, tokens = [], [], 0
    for number in range(WARM_UP + TIMES):
        job = Encode(messages=[{"role": "user", "content": f"{TEXT} number {number} hot?"}], began=0)
        start = time.perf_counter()
        encoded = encoder.run(job)
        middle = time.perf_counter()
        assert await workers.encode(job, user="bench") == encoded  # noqa: S101 - both ways give the same result
        end = time.perf_counter()
        assert isinstance(encoded, Encoded)  # noqa: S101 - no prompt here is refused
        tokens = len(encoded.ids) // 4
        if number >= WARM_UP:
            here.append((middle - start) * 1e3)
            there.append((end - middle) * 1e3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    hop = [b - a for a, b in zip(here, there, strict=True)]
    name = f"{what.name}, {tokens} tokens"
    print(f"99th percentiles: {_high(here):.2f} ms here, {_high(there):.2f} ms through the workers", flush=True)
    return [
        Figure(benchmark="hop", name=f"{name}: in this process", values=here, unit="ms"),
        Figure(benchmark="hop", name=f"{name}: added by the hop", values=hop, unit="ms", goal=GOAL),
    ]


def _high(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[-1]


def main() -> None:
    """Measure and print."""
    options = start_benchmark(option_parser(__doc__, model="embedded"))
    publish(uvloop.run(measure(subject(options.model))))


if __name__ == "__main__":
    main()
