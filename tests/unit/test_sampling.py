"""The sampler: its probabilities compared with llama.cpp's samplers, and its errors for invalid logits."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.candidates import candidates, largest
from engine.errors import SamplingError
from engine.messages import Sampling
from engine.sampler import Sampler

VOCABULARY = 20_000
TOKEN = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]


def sampling(**fields: Any) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 1, **fields})


def logits(seed: int, size: int = VOCABULARY, scale: float = 2.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def reference(values: NDArray[np.float32], s: Sampling, said: list[int]) -> dict[int, float]:
    """Return the probabilities that llama.cpp's samplers compute."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if s.logit_bias:
        bias = (llama_cpp.llama_logit_bias * len(s.logit_bias))()
        for entry, (token, value) in zip(bias, s.logit_bias.items(), strict=True):
            entry.token, entry.bias = token, value
        llama_cpp.llama_sampler_chain_add(
            chain, llama_cpp.llama_sampler_init_logit_bias(len(values), len(s.logit_bias), bias)
        )
    penalties = (s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
    for part in (
        llama_cpp.llama_sampler_init_penalties(len(values), 64, *penalties),
        llama_cpp.llama_sampler_init_top_k(s.top_k),
        llama_cpp.llama_sampler_init_top_p(s.top_p, 1),
        llama_cpp.llama_sampler_init_min_p(s.min_p, 1),
        llama_cpp.llama_sampler_init_temp(s.temperature),
        llama_cpp.llama_sampler_init_dist(1),
    ):
        llama_cpp.llama_sampler_chain_add(chain, part)
    for token in said:
        llama_cpp.llama_sampler_accept(chain, token)
    data = np.zeros(len(values), TOKEN)
    data["id"], data["logit"] = np.arange(len(values)), values
    pointer = data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    array = llama_cpp.llama_token_data_array(pointer, len(values), -1, False)
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    llama_cpp.llama_sampler_free(chain)
    left = data[: int(array.size)]
    return dict(zip(left["id"].tolist(), left["p"].tolist(), strict=True))


def ours(values: NDArray[np.float32], s: Sampling, said: list[int]) -> dict[int, float]:
    sampler, adjusted = Sampler(s), values.copy()
    sampler._counts.update(said)
    sampler._adjust(adjusted)
    found = candidates(adjusted, s)
    return dict(zip(found.ids.tolist(), found.probabilities.tolist(), strict=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 20, "top_p": 0.8, "temperature": 0.7},
        {"top_k": 40, "top_p": 0.9, "temperature": 0.2},
        {"top_k": 1000},
        {"top_p": 0.3},
        {"top_p": 0.99, "temperature": 1.7},
        {"min_p": 0.05},
        {"min_p": 0.02, "top_p": 0.7, "top_k": 500, "temperature": 0.5},
        {"top_k": 20, "logit_bias": {5: 9.0, 6: -100.0, 7: 12.5}},
        {"top_k": 30, "repeat_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": -1.5},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_every_token_has_the_probability_that_llama_cpp_gives_it(fields: dict[str, Any], scale: float) -> None:
    values, s = logits(1, scale=scale), sampling(**fields)
    said = [int(i) for i in np.argsort(-values)[:8]] * 2 + [17]
    expected, found = reference(values, s, said), ours(values, s, said)
    assert sum(found.values()) == pytest.approx(1)
    # Total variation distance. llama.cpp sums in float32, so the last few tokens of a wide nucleus may differ.
    assert sum(abs(expected.get(i, 0) - found.get(i, 0)) for i in {*expected, *found}) / 2 < 1e-3
    for token, probability in sorted(expected.items(), key=lambda item: -item[1])[:20]:
        assert found[token] == pytest.approx(probability, rel=1e-3)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=300), st.integers(1, 300), st.integers(1, 40))
def test_the_largest_logits_are_found_for_any_values(values: list[float], count: int, repeat: int) -> None:
    array = np.array(values * repeat, np.float32)
    found = array[largest(array, count)]
    assert found.tolist() == sorted(array.tolist(), reverse=True)[:count]


@settings(max_examples=25)
@given(st.integers(4096, 30_000), st.integers(1, 600), st.integers(0, 5))
def test_the_largest_logits_of_a_large_vocabulary_are_found_by_blocks(size: int, count: int, seed: int) -> None:
    array = np.round(logits(seed, size), 1)  # ties
    assert array[largest(array, count)].tolist() == sorted(array.tolist(), reverse=True)[:count]


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.6}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.01}], ids=str)
def test_tokens_are_sampled_with_their_probabilities(fields: dict[str, Any]) -> None:
    values, s = logits(3, 5000, 3.0), sampling(**fields)
    expected = reference(values, s, [])
    sampler, draws = Sampler(s), 4000
    drawn = np.bincount([sampler.draw(values.copy()) for _ in range(draws)], minlength=len(values))
    likely = [token for token, p in expected.items() if p * draws >= 8]
    assert len(likely) >= 3
    # The mean of Pearson's statistic is its number of degrees of freedom, and its variance is twice that.
    statistic = sum((drawn[t] - expected[t] * draws) ** 2 / (expected[t] * draws) for t in likely)
    assert statistic < len(likely) + 5 * (2 * len(likely)) ** 0.5
    assert all(expected.get(int(token), 0) > 0 for token in np.flatnonzero(drawn))


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-5])
def test_a_temperature_near_zero_chooses_the_largest_logit(temperature: float) -> None:
    values = logits(4)
    assert Sampler(sampling(temperature=temperature, top_k=20)).draw(values.copy()) == int(values.argmax())


def test_a_seed_determines_every_token() -> None:
    def drawn(seed: int) -> list[int]:
        sampler = Sampler(sampling(seed=seed))
        return [sampler.draw(logits(i)) for i in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0}, {"top_k": 20}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused(fields: dict[str, Any], value: float) -> None:
    with pytest.raises(SamplingError, match="not finite"):
        Sampler(sampling(**fields)).draw(np.full(VOCABULARY, value, np.float32))


def test_log_probabilities_are_the_models_whatever_changes_the_sampling() -> None:
    values = logits(5, 500)
    sampler = Sampler(sampling(temperature=0, logit_bias={7: 1000.0}), top_logprobs=3)
    assert sampler.draw(values.copy()) == 7
    (logprob,) = sampler.logprobs
    exact = values.astype(np.float64) - np.log(np.exp(values.astype(np.float64)).sum())
    best = np.argsort(-values)[:3].tolist()
    assert logprob.value == pytest.approx(exact[7], abs=1e-4)
    assert [token for token, _ in logprob.top] == best
    assert [value for _, value in logprob.top] == pytest.approx(exact[best].tolist(), abs=1e-4)


def test_log_probabilities_are_returned_only_on_request() -> None:
    sampler = Sampler(sampling())
    sampler.draw(logits(6))
    assert sampler.logprobs == []
