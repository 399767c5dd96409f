"""Bare decoding and sampling: the speed of llama.cpp itself on this machine.

python -m benchmarks.bare MODEL.gguf THREADS: loads the model, prints a line, then runs once for each line on stdin and
prints the tokens per second of that run.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from engine import Sampling
from engine.llama import Context, Model
from engine.sampler import Sampler

NEW_TOKENS: Final = 128
PROMPT_TOKENS: Final = 48
GREEDY: Final = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1)


def bare(model: Model, threads: int) -> float:
    """Return the tokens per second of NEW_TOKENS after a short prompt, whose content does not affect the speed."""
    context = Context(model, cells=4096, sequences=1, threads=threads)
    sampler = Sampler(GREEDY)
    context.decode([(256 + i, i, 0, i == PROMPT_TOKENS - 1) for i in range(PROMPT_TOKENS)])
    token, started = sampler.draw(context.logits(PROMPT_TOKENS - 1)), time.perf_counter()
    for position in range(PROMPT_TOKENS, PROMPT_TOKENS + NEW_TOKENS - 1):
        context.decode([(token, position, 0, True)])
        token = sampler.draw(context.logits(0))
    seconds = time.perf_counter() - started
    context.close()
    return (NEW_TOKENS - 1) / seconds


def main() -> None:
    """Run once for each line on stdin."""
    model = Model(Path(sys.argv[1]))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(bare(model, int(sys.argv[2])), flush=True)


if __name__ == "__main__":
    main()
