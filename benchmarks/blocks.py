"""The cost of each store backend: 1 000 tokens of a 0.5B model's KV in 8 encrypted blocks of 1.57 MB.

python -m benchmarks.blocks [ROUNDS]: each backend on this machine, in alternation, with the spread. `fetch` is what a
returning request waits for: finding the longest stored prefix, fetching and decrypting it. `keep` is encrypting and
storing, in the background. Redis is Debian's, on a unix socket and on loopback.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.machine import machine
from cache import BLOCK, CacheConfig, KeyRing, PrefixCache, Stored
from tests.support.redis_server import RedisServer

TOKENS, BLOCK_BYTES, ROUNDS = 8 * BLOCK, 1_570_000, 15
WHAT = {"model": "benchmark"}


def keep(cache: PrefixCache, tokens: list[int]) -> Callable[[], object]:
    """Return the work of storing a turn, without serialization."""
    chain = cache.chain(tokens, "tenant")
    states = [Stored(block, os.urandom(BLOCK_BYTES)) for block in chain.blocks]
    return lambda: cache.store(chain, states)


def fetch(cache: PrefixCache, tokens: list[int]) -> Callable[[], object]:
    """Return the work that a request with 20 new tokens waits for."""

    def work() -> None:
        found = cache.fetch(cache.chain([*tokens, *range(20)], "tenant"))
        if len(found) != TOKENS // BLOCK:
            raise SystemExit(f"{len(found)} blocks were found, expected {TOKENS // BLOCK}")

    return work


def miss(cache: PrefixCache, tokens: list[int]) -> Callable[[], object]:
    """Return the work that a request without stored blocks waits for."""
    return lambda: cache.fetch(cache.chain(tokens, "nobody"))


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds that `work` takes."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def main(rounds: int) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="samovar-bench-")))
        server = stack.enter_context(RedisServer(folder))
        keys = KeyRing.new().text
        urls = {"sqlite": f"sqlite://{folder}/blocks.db", "memory": "memory://"}
        urls |= {"redis, unix socket": server.unix, "redis, loopback": server.url}
        caches = {name: CacheConfig(url, 3600.0, 1 << 30, keys).open(WHAT) for name, url in urls.items()}
        for cache in caches.values():
            stack.callback(cache.close)
        times: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds + 1):
            tokens = list(range(number, number + TOKENS))
            for name, cache in caches.items():
                for work in (keep, fetch, miss):
                    milliseconds = timed(work(cache, tokens))
                    if number:  # the first round connects
                        times.setdefault((name, work.__name__), []).append(milliseconds)
        free = shutil.disk_usage(folder).free >> 30
    print(
        f"8 encrypted blocks of {BLOCK_BYTES / 1e6:.2f} MB, {rounds} alternating rounds, {machine()}, {free} GiB free"
    )
    print("| milliseconds, median (from – to) | keep | fetch | miss |\n|---|---|---|---|")
    for name in caches:
        columns = (times[name, work.__name__] for work in (keep, fetch, miss))
        cells = (f"{statistics.median(ms):.1f} ({min(ms):.1f} – {max(ms):.1f})" for ms in columns)
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
