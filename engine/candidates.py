"""The top_k, top_p and min_p filters of llama.cpp, in its order and with its distribution, on an array of logits.

llama.cpp's samplers build and sort an array of the whole vocabulary for every token. With 152 000 tokens that takes a
noticeable part of a step. A few passes of numpy over the logits find the same candidates in a fraction of the time
(`benchmarks/sampling.py` measures both).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.messages import Sampling

Logits = NDArray[np.float32]
Ids = NDArray[np.intp]

BLOCKS: Final = 1024
"""Number of interleaved blocks of the vocabulary. The k-th largest block maximum is at most the k-th largest logit."""
STEPS: Final = (256, 4096)
"""Numbers of candidates to try before the whole vocabulary: 256 are nearly always enough for `top_p`."""


class Candidates(NamedTuple):
    """The tokens that pass the filters: indices into the logits, and probabilities with the sum 1."""

    ids: Ids
    probabilities: NDArray[np.float64]


def candidates(logits: Logits, sampling: Sampling) -> Candidates:
    """Return the tokens that pass top_k, top_p and min_p, with their probabilities at a temperature above 0."""
    s = sampling
    if s.top_k:
        ids = _nucleus(logits, largest(logits, s.top_k), s.top_p, None)
    elif s.top_p < 1:
        ids = _nucleus_of_all(logits, s.top_p)
    else:
        ids = np.arange(len(logits))
    values = logits[ids]
    top = values.max()
    if s.min_p > 0:
        near = values >= top + math.log(s.min_p)
        ids, values = ids[near], values[near]
    weights = np.exp((values - top).astype(np.float64) / s.temperature)
    return Candidates(ids, weights / weights.sum())


def largest(logits: Logits, count: int) -> Ids:
    """Return the indices of the `count` largest logits, largest first."""
    size = len(logits)
    if count >= size:
        chosen = np.arange(size)
    elif size < 4 * BLOCKS or count > BLOCKS // 2:
        chosen = np.argpartition(logits, size - count)[size - count :]
    else:
        maxima = logits[: size - size % BLOCKS].reshape(-1, BLOCKS).max(axis=0)
        chosen = np.flatnonzero(logits >= np.partition(maxima, BLOCKS - count)[BLOCKS - count])
    return chosen[np.argsort(-logits[chosen], kind="stable")[:count]]


def _nucleus_of_all(logits: Logits, top_p: float) -> Ids:
    weights = np.exp(logits - logits.max())
    for count in STEPS:
        ids = largest(logits, count)
        kept = _nucleus(logits, ids, top_p, float(weights.sum()))
        if len(kept) < len(ids):
            return kept
    # A flat distribution. Sorting the values is five times as fast as sorting their indices.
    ordered = -np.sort(-weights)
    mass = np.cumsum(ordered, dtype=np.float64)
    count = min(int(np.searchsorted(mass, top_p * mass[-1])) + 1, len(weights))
    least = ordered[count - 1]
    above, ties = np.flatnonzero(weights > least), np.flatnonzero(weights == least)
    return np.concatenate([above, ties[: count - len(above)]])


def _nucleus(logits: Logits, ids: Ids, top_p: float, total: float | None) -> Ids:
    """Return the shortest prefix of the sorted `ids` with at least `top_p` of the probability mass.

    `total` is the total mass, where the largest logit of `ids` has the mass 1; None: the mass of `ids`.
    """
    if top_p >= 1:
        return ids
    values = logits[ids].astype(np.float64)
    mass = np.cumsum(np.exp(values - values[0]))
    kept = int(np.searchsorted(mass, top_p * (mass[-1] if total is None else total))) + 1
    return ids[:kept]


def among_all(logits: Logits, temperature: float, number: float) -> int:
    """Return the token of the whole vocabulary that the uniform random `number` below 1 selects.

    Selects a block first and then a token in it, to avoid a cumulative sum over the vocabulary.
    """
    weights = np.exp((logits - logits.max()) * np.float32(1 / temperature))
    sums = np.add.reduceat(weights, np.arange(0, len(weights), BLOCKS), dtype=np.float64)
    ends = np.cumsum(sums)
    wanted = number * ends[-1]
    block = min(int(np.searchsorted(ends, wanted, side="right")), len(ends) - 1)
    start = block * BLOCKS
    inside = np.cumsum(weights[start : start + BLOCKS], dtype=np.float64)
    return start + pick(inside, (wanted - (ends[block] - sums[block])) / inside[-1], summed=True)


def pick(weights: NDArray[np.float64], number: float, *, summed: bool = False) -> int:
    ends = weights if summed else np.cumsum(weights)
    return min(int(np.searchsorted(ends, number * ends[-1], side="right")), len(ends) - 1)
