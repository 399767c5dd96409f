"""Step times of a model on this machine, and what follows: how many engines work, and which sequences share a step.

On a CPU, a larger batch is not free as it is on a GPU. With a small model, a step of two sequences takes longer than
two steps of one, and a step of six longer than a step of eight, because kernels process rows in groups. Two engines of
one thread each are faster than one engine of two threads until about seven sequences run. All of this depends on the
processor, so `samovar tune` measures it (engine/tuning.py), and every scheduling decision asks a `CostModel`.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

Kind = Literal["decode", "prefill"]
WIDEST: Final = 16
"""Maximum sequences that one step decodes. Beyond this width, step time grows in proportion to the width."""
BATCH: Final = 256
"""Maximum tokens in one step. Wider steps are no faster per token, and their buffers take 25 MB more."""
WORTH: Final = 1.1
"""Minimum ratio of new to old throughput for changing the number of working engines, because a change moves KV."""


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds per step while `engines` engines work at the same time, with `threads` threads each."""

    engines: int
    threads: int
    decode: dict[int, float]
    """By number of sequences in the step, with one token each."""
    prefill: dict[int, float]
    """By number of prompt tokens in the step, all of one sequence, with logits for the last token."""


class CostModel(msgspec.Struct, frozen=True, kw_only=True):
    """Step times of one model on one machine."""

    cores: int
    times: list[StepTimes]
    """One entry per number of engines, ascending. The first is for one engine with all cores."""
    measured: bool
    """Whether the times were measured on this machine with this model, or are those of an average machine."""

    def at(self, threads: int) -> StepTimes:
        """Return the step times of an engine that has `threads` threads while other engines use the other cores."""
        return min(self.times, key=lambda times: (abs(times.threads - threads), times.engines))

    def limited(self, engines: int) -> CostModel:
        """Return this cost model for at most `engines` engines."""
        return msgspec.structs.replace(self, times=[times for times in self.times if times.engines <= engines])

    def engines(self, sequences: int, working: int = 1) -> int:
        """Return how many engines should share `sequences`, while `working` engines do now.

        The number changes only if the throughput rises by the factor WORTH.
        """
        best = max(self.times, key=lambda times: (self.rate(times.engines, sequences), -times.engines)).engines
        now = next((times.engines for times in self.times if times.engines == working), None)
        if now is None or self.rate(best, sequences) > WORTH * self.rate(now, sequences):
            return best
        return now

    def rate(self, engines: int, sequences: int) -> float:
        """Return the tokens per second of `sequences` split evenly between `engines`."""
        times = next(times for times in self.times if times.engines == engines)
        each, rest = divmod(sequences, engines)
        shares = [each + (i < rest) for i in range(engines)]
        return sum(share / round_seconds(times, share) for share in shares if share)

    def most(self) -> int:
        """Return the smallest number of concurrent sequences that reaches 95 % of the best throughput."""
        rates = {n: max(self.rate(times.engines, n) for times in self.times) for n in range(1, WIDEST + 1)}
        return next(n for n, rate in rates.items() if rate >= 0.95 * max(rates.values()))

    def deadline(self) -> float:
        """Return the seconds without a message after which an engine counts as hung: many times its longest step.

        The deadline is for one thread, and long enough for an engine that other processes deprive of the processor.
        """
        times = self.times[-1]
        return 30.0 + 10 * times.threads * max(times.prefill.values())


def seconds(table: Mapping[int, float], width: int) -> float:
    """Return the seconds of a step of `width`, as measured, or interpolated between the nearest measured widths."""
    if width in table:
        return table[width]
    widths = sorted(table)
    if width > widths[-1]:
        return table[widths[-1]] * width / widths[-1]
    above = bisect.bisect(widths, width)
    if above == 0:
        return table[widths[0]]
    low, high = widths[above - 1], widths[above]
    return table[low] + (table[high] - table[low]) * (width - low) / (high - low)


def widest(times: StepTimes, budget: float) -> int:
    """Return the largest number of prompt tokens whose step takes at most `budget` seconds."""
    return bisect.bisect_right(range(BATCH + 1), budget, lo=1, key=lambda rows: seconds(times.prefill, rows)) - 1


def padded(times: StepTimes, sequences: int) -> int:
    """Return the fastest number of rows for a step of `sequences`: dummy rows can make a step faster."""
    return _padded(tuple(times.decode.items()), sequences)


def groups(times: StepTimes, sequences: int) -> tuple[int, ...]:
    """Return the step widths, widest first, that compute one token for each of `sequences` in the least time."""
    return _groups(tuple(times.decode.items()), sequences)


def round_seconds(times: StepTimes, sequences: int) -> float:
    """Return the seconds in which one engine computes one token for each of `sequences`."""
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


# Step time relative to that of one sequence, by number of sequences, measured on Qwen2.5-0.5B Q4_K_M: for one thread
# per engine, and for several. Kernels process rows in groups of four, so one row more than a multiple is expensive.
_SHAPE_ONE: Final = {
    1: 1.0, 2: 3.5, 3: 4.6, 4: 5.0, 5: 6.9, 6: 7.2, 8: 6.5, 9: 8.6, 12: 8.0, 13: 10.0, 16: 8.3, 32: 15.7,
}  # fmt: skip
_SHAPE_MANY: Final = {
    1: 1.0, 2: 2.5, 3: 3.2, 4: 3.4, 5: 4.5, 6: 4.8, 8: 4.2, 9: 5.4, 12: 5.1, 13: 6.6, 16: 5.8, 32: 10.9,
}  # fmt: skip
_PREFILL: Final = {1: 1.0, 8: 5.0, 16: 6.5, 32: 12.0, 64: 21.0, 128: 40.0, 256: 78.0}
BANDWIDTH: Final = 24e9
"""Bytes of weights that one core of an average machine reads per second."""


def heuristic(weights: int, cores: int, engines: int) -> CostModel:
    """Return the cost model of an average machine for a model of `weights` bytes.

    The ratios between its times are realistic; the seconds are not.
    """
    times = []
    for count in range(1, engines + 1):
        threads = cores // count
        shape = _SHAPE_ONE if threads == 1 else _SHAPE_MANY
        # Decoding one sequence reads all weights once per token. Two cores use most of the memory bandwidth.
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
