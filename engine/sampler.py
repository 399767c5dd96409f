"""Samples the next token of a request: logit bias, penalties, filters, random draw, grammar."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from engine.candidates import Logits, among_all, candidates, largest, pick
from engine.constraint import Constraint
from engine.errors import SamplingError
from engine.messages import Logprob, Sampling

GREEDY_BELOW: Final = 1e-3
"""Temperature below which the likeliest token is chosen. A division by less overflows the range of float32 logits."""


class Sampler:
    """Samples the tokens of one request.

    Each token uses two random numbers, so that the state of the generator depends only on seed and position.
    """

    def __init__(
        self, sampling: Sampling, *, top_logprobs: int | None = None, constraint: Constraint | None = None
    ) -> None:
        """Sample with `sampling`, greedily if its temperature is below GREEDY_BELOW.

        With `top_logprobs`, `logprobs` holds the log probabilities of each sampled token and of so many others.
        """
        self.logprobs: list[Logprob] = []
        """The log probabilities of the last token, if requested."""
        self._sampling = sampling
        self._top_logprobs = top_logprobs
        self._constraint = constraint
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))
        self._counts: Counter[int] = Counter()
        self._penalizes = sampling.repeat_penalty != 1 or bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._biased = np.fromiter(sampling.logit_bias, np.intp)
        self._biases = np.fromiter(sampling.logit_bias.values(), np.float32)

    def draw(self, logits: Logits) -> int:
        """Return the next token. Modifies `logits`, one per token of the vocabulary. Raises SamplingError."""
        reference = None if self._top_logprobs is None else _Reference(logits, self._top_logprobs)
        self._adjust(logits)
        first, second = self._random.random(2)
        token = self._choose(logits, first)
        if self._constraint is not None and not self._constraint.allows(token):
            ids = self._constraint.allowed()
            token = int(ids[self._choose(logits[ids], second)])
        if reference is not None:
            self.logprobs = [reference.of(token)]
        if self._penalizes:
            self._counts[token] += 1
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def replay(self, tokens: Sequence[int]) -> None:
        """Restore the state after sampling `tokens`, so that sampling continues as before. Raises SamplingError."""
        self._random.random(2 * len(tokens))
        if self._penalizes:
            self._counts.update(tokens)
        if self._constraint is not None:
            for token in tokens:
                if not self._constraint.allows(token):
                    raise SamplingError("the tokens generated so far do not fit the grammar")
                self._constraint.accept(token)

    def _adjust(self, logits: Logits) -> None:
        if self._biased.size:
            logits[self._biased] += self._biases
        if not self._penalizes or not self._counts:
            return
        s = self._sampling
        ids = np.fromiter(self._counts, np.intp, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        seen = logits[ids]
        seen = np.where(seen <= 0, seen * np.float32(s.repeat_penalty), seen / np.float32(s.repeat_penalty))
        logits[ids] = seen - counts * np.float32(s.frequency_penalty) - np.float32(s.presence_penalty)

    def _choose(self, logits: Logits, number: float) -> int:
        """Return the index in `logits` that the uniform random `number` below 1 selects. Raises SamplingError."""
        s = self._sampling
        likeliest = int(logits.argmax())  # the first NaN, if there is one
        if not math.isfinite(logits[likeliest]):
            raise SamplingError("the model's logits are not finite; the model file may be damaged")
        if s.temperature < GREEDY_BELOW:
            return likeliest
        if not s.top_k and s.top_p >= 1 and not s.min_p:
            return among_all(logits, s.temperature, number)
        ids, probabilities = candidates(logits, s)
        return int(ids[pick(probabilities, number)])


class _Reference:
    """The model's log probabilities before bias, penalties and constraint change the logits."""

    def __init__(self, logits: Logits, others: int) -> None:
        top = logits.max()
        self._normalizer = float(top) + math.log(float(np.exp(logits - top).sum()))
        self._logits = logits.copy()
        self._top = largest(logits, others) if others else np.empty(0, np.intp)

    def of(self, token: int) -> Logprob:
        """Return the log probabilities of `token` and of the likeliest tokens."""
        value = float(self._logits[token]) - self._normalizer
        return Logprob(value, [(int(i), float(self._logits[i]) - self._normalizer) for i in self._top])
