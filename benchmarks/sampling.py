"""What drawing a token costs with the users' vocabulary: llama.cpp's own chain beside Samovar's, on the same logits.

python -m benchmarks.sampling [MODEL.gguf]: microseconds a token for each way, interleaved, with the spread and the
machine; with a model also what its vocabulary costs under a grammar, when the token that was drawn does not fit.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine
from engine import Model
from engine.constraint import Grammars
from engine.llama import GrammarState
from engine.messages import Grammar, Sampling
from engine.sampler import Sampler
from gateway.protocol import grammar

VOCABULARY, ROUNDS, DRAWS = 151_936, 5, 40
# A trained model is sure of most of its tokens; a bell curve with its best few lifted comes near to that.
SURE, UNSURE = "sure", "unsure"
DEFAULTS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "the contract's defaults": DEFAULTS,
    "top_p alone": {"top_p": 0.95},
    "min_p alone": {"min_p": 0.05},
    "temperature alone": {"temperature": 0.8},
    "defaults, penalties": {**DEFAULTS, "repeat_penalty": 1.1, "presence_penalty": 0.5},
    "defaults, 50 biases": {**DEFAULTS, "logit_bias": dict.fromkeys(range(50), 1.0)},
}


def logits(kind: str) -> NDArray[np.float32]:
    """One step's worth, seeded."""
    random = np.random.default_rng(0)
    values = random.standard_normal(VOCABULARY) * 2
    if kind == SURE:
        values[random.choice(VOCABULARY, 40, replace=False)] += np.linspace(4, 14, 40)
    return values.astype(np.float32)


def chain(s: Sampling) -> Any:
    """llama.cpp's samplers for the same request, in its own order."""
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
    """`llama_sampler_sample` without its context: the array of candidates, the chain, the choice."""

    def __init__(self, sampling: Sampling) -> None:
        """Make the chain."""
        self._chain = chain(sampling)
        self._data = np.zeros(VOCABULARY, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._ids = np.arange(VOCABULARY, dtype=np.int32)
        self._pointer = self._data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))

    def draw(self, values: NDArray[np.float32]) -> int:
        """One token."""
        self._data["id"], self._data["logit"] = self._ids, values
        array = llama_cpp.llama_token_data_array(self._pointer, VOCABULARY, -1, False)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token


def microseconds(sampler: Theirs | Sampler, values: NDArray[np.float32]) -> float:
    """Of one draw, the mean of DRAWS; the copy that spares the logits is not counted."""
    spent = 0.0
    for _ in range(DRAWS):
        copy = values.copy()
        started = time.perf_counter()
        sampler.draw(copy)
        spent += time.perf_counter() - started
    return spent / DRAWS * 1e6


def constrained(path: Path) -> None:
    """Print what it costs to find tokens that fit a grammar: asking about all, beside asking where it matters."""
    vocabulary = Model(path, vocab_only=True).vocabulary
    grammars, json = Grammars(vocabulary), grammar.Grammar("schema")
    gbnf = json.text(json.common("object"))
    started = time.perf_counter()
    found = len(grammars.lexicon.always)
    print(
        f"\n{path.name}: lexicon {(time.perf_counter() - started) * 1e3:.0f} ms once, {found} tokens always looked at"
    )
    every, random = np.arange(vocabulary.size), np.random.default_rng(0)
    print(f"{'a rejected token after':34}{'all by llama.cpp':>22}{'20 by Samovar':>22}")
    for said in ("", '{"', '{"city": ', '{"city": "Par'):
        state, constraint = GrammarState(vocabulary, gbnf), grammars.constraint(Grammar(gbnf))
        assert constraint is not None  # noqa: S101 - for the type checker
        for token in vocabulary.tokenize(said, special=False):
            state.accept(token)
            constraint.accept(token)
        columns: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            values = random.standard_normal(vocabulary.size).astype(np.float32)
            started = time.perf_counter()
            state.fits(every)
            between = time.perf_counter()
            constraint.candidates(values, 20)
            columns[0].append((between - started) * 1e6)
            columns[1].append((time.perf_counter() - between) * 1e6)
        cells = [f"{statistics.median(c):7.0f} ({min(c):.0f}–{max(c):.0f})" for c in columns]
        print(f"{said or 'nothing':34}{cells[0]:>22}{cells[1]:>22}")


def main() -> None:
    """Measure and print."""
    print(f"{VOCABULARY} tokens, {machine()}, {ROUNDS} interleaved rounds of {DRAWS} draws: median µs a token (spread)")
    print(f"{'':34}{'llama.cpp':>22}{'Samovar':>22}")
    for kind in (SURE, UNSURE):
        values = logits(kind)
        for name, fields in WAYS.items():
            sampling = Sampling(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 1, **fields})
            pair = (Theirs(sampling), Sampler(sampling))
            rounds = [[microseconds(sampler, values) for sampler in pair] for _ in range(ROUNDS)]
            columns = [f"{statistics.median(c):7.0f} ({min(c):.0f}–{max(c):.0f})" for c in zip(*rounds, strict=True)]
            print(f"{kind + ', ' + name:34}{columns[0]:>22}{columns[1]:>22}")

    if len(sys.argv) > 1:
        constrained(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
