"""One stream through an engine process beside a bare llama.cpp loop: what do the process and its messages cost?

python -m benchmarks.decode [MODEL.gguf]: tokens a second of both, interleaved, with the spread and the machine.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

from benchmarks.machine import cores, embedded, machine
from engine import EnginePool, Generate, Sampling, Tokens, WorkerConfig
from engine.llama import Context, Model
from engine.sampler import Sampler

ROUNDS, NEW_TOKENS = 5, 128
# A bias against the end of generation would cost a sampler; a fixed prompt that talks on long enough does not.
PROMPT = "Once upon a time, in a village by a river, there lived a potter who"
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1)


def bare(model: Model, prompt: list[int], threads: int) -> float:
    """Tokens a second of decode and sample alone."""
    context = Context(model, cells=4096, sequences=1, threads=threads)
    sampler = Sampler(GREEDY)
    context.decode([(token, i, 0, i == len(prompt) - 1) for i, token in enumerate(prompt)])
    token, started = sampler.draw(context.logits(len(prompt) - 1)), time.perf_counter()
    for position in range(len(prompt), len(prompt) + NEW_TOKENS - 1):
        context.decode([(token, position, 0, True)])
        token = sampler.draw(context.logits(0))
    seconds = time.perf_counter() - started
    sampler.close()
    context.close()
    return (NEW_TOKENS - 1) / seconds


async def served(pool: EnginePool, prompt: list[int], number: int) -> float:
    """Tokens a second from the first token to the last, as the gateway gets them."""
    stamps = []
    request = Generate(number, prompt, NEW_TOKENS, GREEDY, str(number))
    async for message in pool.generate(pool.engines[0], request):
        if isinstance(message, Tokens):
            stamps += [time.perf_counter()] * len(message.ids)
    pool.engines[0].forget([number])  # or its idle cells would slow the next round
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


async def main(path: Path) -> None:
    """Measure and print."""
    threads = cores()
    model = Model(path)
    prompt = model.vocabulary.tokenize(PROMPT, special=False)
    pool = EnginePool(WorkerConfig(str(path), 4096, 8), count=1, cores=threads)
    await served(pool, prompt, 0)  # loads, and warms the page cache
    figures = [(bare(model, prompt, threads), await served(pool, prompt, n)) for n in range(1, ROUNDS + 1)]
    await pool.close()
    print(f"{path.name}, {machine()}, {ROUNDS} interleaved rounds of {NEW_TOKENS} tokens")
    for name, column in zip(("bare loop", "engine process"), zip(*figures, strict=True), strict=True):
        print(f"{name:15} {statistics.median(column):6.1f} tok/s  ({min(column):.1f} to {max(column):.1f})")
    ratios = [engine / loop for loop, engine in figures]
    print(f"{'ratio':15} {statistics.median(ratios):6.3f}        ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else embedded()))
