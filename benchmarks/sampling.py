"""The cost of sampling with Qwen2.5's vocabulary size: llama.cpp's sampler chain and Samovar's, on the same logits.

python -m benchmarks.sampling [MODEL.gguf]: microseconds per token for each sampler, interleaved, and the ratio of
Samovar's sampler to llama.cpp's chain; with a model also the cost of a grammar on its vocabulary.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from benchmarks.figures import Figure, publish
from benchmarks.machine import machine
from engine import Model
from engine.constraint import Compiler
from engine.messages import Grammar, Sampling
from engine.sampler import Sampler

VOCABULARY, ROUNDS, DRAWS = 151_936, 5, 40
# A trained model is confident about most tokens; a normal distribution with a few raised values approximates that.
SURE, UNSURE = "sure", "unsure"
DEFAULTS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "the defaults": DEFAULTS,
    "top_p alone": {"top_p": 0.95},
    "min_p alone": {"min_p": 0.05},
    "temperature alone": {"temperature": 0.8},
    "defaults, penalties": {**DEFAULTS, "repeat_penalty": 1.1, "presence_penalty": 0.5},
    "defaults, 50 biases": {**DEFAULTS, "logit_bias": dict.fromkeys(range(50), 1.0)},
}


PREFIXES: Final = ("", '{"', '{"city": ', '{"city": "Par')
"""Text generated under the grammar so far."""


def logits(kind: str) -> NDArray[np.float32]:
    """Return the logits of one step, seeded."""
    random = np.random.default_rng(0)
    values = random.standard_normal(VOCABULARY) * 2
    if kind == SURE:
        values[random.choice(VOCABULARY, 40, replace=False)] += np.linspace(4, 14, 40)
    return values.astype(np.float32)


def chain(s: Sampling) -> Any:
    """Return llama.cpp's sampler chain for the same request, in llama.cpp's order."""
    made = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    parts = []
    if s.logit_bias:
        bias = (llama_cpp.llama_logit_bias * len(s.logit_bias))()
        for entry, (token, value) in zip(bias, s.logit_bias.items(), strict=True):
            entry.token, entry.bias = token, value
        parts.append(llama_cpp.llama_sampler_init_logit_bias(VOCABULARY, len(bias), bias))
    if s.repeat_penalty != 1 or s.presence_penalty or s.frequency_penalty:
        parts.append(
            llama_cpp.llama_sampler_init_penalties(
                VOCABULARY, 4096, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
            )
        )
    if s.temperature <= 0:
        parts.append(llama_cpp.llama_sampler_init_greedy())
    else:
        parts += [
            llama_cpp.llama_sampler_init_top_k(s.top_k),
            llama_cpp.llama_sampler_init_top_p(s.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(s.min_p, 1),
            llama_cpp.llama_sampler_init_temp(s.temperature),
            llama_cpp.llama_sampler_init_dist(s.seed),
        ]
    for part in parts:
        llama_cpp.llama_sampler_chain_add(made, part)
    return made


class Theirs:
    """`llama_sampler_sample` without a context: the array of candidates, the chain, the selection."""

    def __init__(self, sampling: Sampling) -> None:
        """Create the chain."""
        self._chain = chain(sampling)
        self._data = np.zeros(VOCABULARY, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._ids = np.arange(VOCABULARY, dtype=np.int32)
        self._pointer = self._data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))

    def draw(self, values: NDArray[np.float32]) -> int:
        """Sample one token."""
        self._data["id"], self._data["logit"] = self._ids, values
        array = llama_cpp.llama_token_data_array(self._pointer, VOCABULARY, -1, False)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token


def microseconds(sampler: Theirs | Sampler, values: NDArray[np.float32]) -> float:
    """Return the mean microseconds of DRAWS samples, without the copy of the logits."""
    spent = 0.0
    for _ in range(DRAWS):
        copy = values.copy()
        started = time.perf_counter()
        sampler.draw(copy)
        spent += time.perf_counter() - started
    return spent / DRAWS * 1e6


def figure(name: str, values: Sequence[float], unit: str = "µs") -> Figure:
    """Create a figure of this benchmark."""
    return Figure(benchmark="sampling", name=name, values=list(values), unit=unit)


def drawn(kind: str, way: str) -> Iterator[Figure]:
    """Yield the cost of one token for both samplers, on logits of one kind."""
    values = logits(kind)
    sampling = Sampling(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 1, **WAYS[way]})
    pair = (Theirs(sampling), Sampler(sampling))
    theirs, ours = zip(*([microseconds(sampler, values) for sampler in pair] for _ in range(ROUNDS)), strict=True)
    name = f"{VOCABULARY:,} tokens, {kind}, {way}"
    yield figure(f"{name}: llama.cpp's chain", theirs)
    yield figure(f"{name}: Samovar's sampler", ours)
    yield figure(f"{name}: Samovar over llama.cpp", [our / their for our, their in zip(ours, theirs, strict=True)], "x")


def constrained(path: Path) -> Iterator[Figure]:
    """Yield the cost of a grammar for any JSON object: testing one token, and the mask after a rejected token."""
    vocabulary = Model(path, vocab_only=True).vocabulary
    started = time.process_time()
    compiler = Compiler(vocabulary)
    name = f"{path.stem}, {vocabulary.size:,} tokens, a grammar"
    yield figure(f"{name}: tokenizer, once", [(time.process_time() - started) * 1e3], "ms")
    grammar = Grammar(LLMatcher.grammar_from_json_schema({"type": "object"}))
    for prefix in PREFIXES:
        tested, masked = [], []
        for _ in range(ROUNDS):
            constraint = compiler.constraint(grammar)
            for token in vocabulary.tokenize(prefix, special=False):
                constraint.accept(token)
            started = time.perf_counter()
            constraint.allows(0)
            between = time.perf_counter()
            constraint.allowed()
            tested.append((between - started) * 1e6)
            masked.append((time.perf_counter() - between) * 1e6)
        where = f"{name}, after {prefix or 'nothing'}"
        yield figure(f"{where}: test of one token", tested)
        yield figure(f"{where}: all allowed tokens", masked)


def main() -> None:
    """Measure and print."""
    print(f"{machine()}, {ROUNDS} interleaved rounds of {DRAWS} draws")
    for kind in (SURE, UNSURE):
        for way in WAYS:
            publish(list(drawn(kind, way)))
    if len(sys.argv) > 1:
        publish(list(constrained(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
