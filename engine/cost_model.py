"""How fast this machine steps, and what follows: how many engines work, and which sequences share a step.

On a CPU a batch is not free as it is on a GPU. On a small model a step of two sequences takes longer than two steps of
one, and a step of six longer than a step of eight, because the kernels work in groups; two engines of one thread each
beat one engine of two threads until about seven sequences run (docs/scheduling.md). None of this is the same on another
processor, so it is measured (`samovar tune`, engine/tuning.py), and everything that decides asks a `CostModel`.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping
from typing import Final

import msgspec

WIDEST: Final = 16
"""Sequences that one step decodes at most: beyond it a step grows as fast as its width."""
BATCH: Final = 256
"""Tokens in one step at most: wider ones are no faster by the token, and their buffers take 25 MB more."""
WORTH: Final = 1.1
"""Changing the number of working engines must promise so many times the tokens a second: it moves KV."""


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step in each of `engines` processes that work at once, with `threads` threads each."""

    engines: int
    threads: int
    decode: dict[int, float]
    """By sequences in the step, one new token each."""
    prefill: dict[int, float]
    """By prompt tokens in the step, of one sequence, logits wanted for the last."""


class CostModel(msgspec.Struct, frozen=True, kw_only=True):
    """Step times of one model on one machine."""

    cores: int
    times: list[StepTimes]
    """One for each number of engines, ascending, the first for one engine with all cores."""
    measured: bool
    """Here and with this model; else they are an ordinary machine's."""

    def at(self, threads: int) -> StepTimes:
        """The times that hold for an engine that has `threads` now, the rest of the cores being others'."""
        return min(self.times, key=lambda times: (abs(times.threads - threads), times.engines))

    def limited(self, engines: int) -> CostModel:
        """The same with `engines` at most."""
        return msgspec.structs.replace(self, times=[times for times in self.times if times.engines <= engines])

    def engines(self, sequences: int, working: int = 1) -> int:
        """How many engines should share `sequences`, when `working` do now: a change must be worth its moves."""
        best = max(self.times, key=lambda times: (self.rate(times.engines, sequences), -times.engines)).engines
        now = next((times.engines for times in self.times if times.engines == working), None)
        if now is None or self.rate(best, sequences) > WORTH * self.rate(now, sequences):
            return best
        return now

    def rate(self, engines: int, sequences: int) -> float:
        """Tokens a second of `sequences` split evenly between `engines`."""
        times = next(times for times in self.times if times.engines == engines)
        each, rest = divmod(sequences, engines)
        shares = [each + (i < rest) for i in range(engines)]
        return sum(share / round_seconds(times, share) for share in shares if share)

    def most(self) -> int:
        """Sequences that are worth running at once: where 95 % of the best rate is reached."""
        rates = {n: max(self.rate(times.engines, n) for times in self.times) for n in range(1, WIDEST + 1)}
        return next(n for n, rate in rates.items() if rate >= 0.95 * max(rates.values()))

    def deadline(self) -> float:
        """Seconds of silence after which an engine is taken for hung: many times its longest step, on one thread.

        Long enough that one which only gets no processor, because others take it all, is not killed for that.
        """
        times = self.times[-1]
        return 30.0 + 10 * times.threads * max(times.prefill.values())


def seconds(table: Mapping[int, float], width: int) -> float:
    """Time of a step of `width`: as measured, or on the line between the two measured ones beside it."""
    widths = sorted(table)
    if width in table:
        return table[width]
    if width > widths[-1]:
        return table[widths[-1]] * width / widths[-1]
    above = bisect.bisect(widths, width)
    if above == 0:
        return table[widths[0]]
    low, high = widths[above - 1], widths[above]
    return table[low] + (table[high] - table[low]) * (width - low) / (high - low)


def widest(times: StepTimes, budget: float) -> int:
    """Prompt tokens whose step takes `budget` seconds at most."""
    return bisect.bisect_right(range(BATCH + 1), budget, lo=1, key=lambda rows: seconds(times.prefill, rows)) - 1


def padded(times: StepTimes, sequences: int) -> int:
    """Rows with which a step of `sequences` is fastest: rows of nothing may make it so."""
    return _padded(tuple(times.decode.items()), sequences)


def groups(times: StepTimes, sequences: int) -> tuple[int, ...]:
    """Widths of the steps, widest first, that give each of `sequences` one token in the least time."""
    return _groups(tuple(times.decode.items()), sequences)


def round_seconds(times: StepTimes, sequences: int) -> float:
    """Time in which each of `sequences` in one engine gets one token."""
    return sum(seconds(times.decode, padded(times, width)) for width in groups(times, sequences))


_Table = tuple[tuple[int, float], ...]


@functools.lru_cache(1024)
def _padded(decode: _Table, sequences: int) -> int:
    table = dict(decode)
    return min(range(sequences, max(sequences, WIDEST) + 1), key=lambda rows: (seconds(table, rows), rows))


@functools.lru_cache(1024)
def _groups(decode: _Table, sequences: int) -> tuple[int, ...]:
    table = dict(decode)
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, sequences + 1):
        steps = ((w, seconds(table, _padded(decode, w))) for w in range(1, min(n, WIDEST) + 1))
        options = [(best[n - w][0] + taken, (w, *best[n - w][1])) for w, taken in steps]
        best.append(min(options, key=lambda option: (option[0], len(option[1]))))
    return tuple(sorted(best[sequences][1], reverse=True))


# Seconds of a step relative to one sequence's, as measured on a Qwen2.5-0.5B of Q4_K_M (docs/scheduling.md), by
# threads. Kernels take rows by four, so that one more than a multiple is dear.
_SHAPE_ONE: Final = {
    1: 1.0, 2: 3.5, 3: 4.6, 4: 5.0, 5: 6.9, 6: 7.2, 8: 6.5, 9: 8.6, 12: 8.0, 13: 10.0, 16: 8.3, 32: 15.7,
}  # fmt: skip
_SHAPE_MANY: Final = {
    1: 1.0, 2: 2.5, 3: 3.2, 4: 3.4, 5: 4.5, 6: 4.8, 8: 4.2, 9: 5.4, 12: 5.1, 13: 6.6, 16: 5.8, 32: 10.9,
}  # fmt: skip
_PREFILL: Final = {1: 1.0, 8: 5.0, 16: 6.5, 32: 12.0, 64: 21.0, 128: 40.0, 256: 78.0}
BANDWIDTH: Final = 24e9
"""Bytes of weights that one core of an ordinary machine reads in a second."""


def heuristic(weights: int, cores: int, engines: int) -> CostModel:
    """The plan of an ordinary machine for a file of `weights` bytes: right in shape, not in seconds."""
    times = []
    for count in range(1, engines + 1):
        threads = cores // count
        shape = _SHAPE_ONE if threads == 1 else _SHAPE_MANY
        # Decoding alone reads all weights once a token: two cores fill most of the memory's bandwidth.
        alone = weights / BANDWIDTH / min(threads, 1.3) * (1.05 if count > 1 else 1.0)
        computed = weights / BANDWIDTH / threads
        times.append(
            StepTimes(
                engines=count,
                threads=threads,
                decode={width: alone * factor for width, factor in shape.items()},
                prefill={width: max(alone, computed * factor) for width, factor in _PREFILL.items()},
            )
        )
    return CostModel(cores=cores, times=times, measured=False)
