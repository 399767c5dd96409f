"""Context and KV cells from the memory of the engines, with the numbers of real models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.sizing import LEAST_CONTEXT, MOST_CONTEXT, OVERHEAD, STEP, ModelBytes, sizes

GIB = 1 << 30
QWEN = ModelBytes(weights=400 << 20, shared=False, token=12_288, sequence=0)
SMOLLM = ModelBytes(weights=140 << 20, shared=False, token=23_040, sequence=0)
MAMBA = ModelBytes(weights=300 << 20, shared=False, token=0, sequence=1 << 20)


def test_the_default_context_is_what_the_model_was_trained_for_up_to_16384() -> None:
    assert sizes(QWEN, trained=32_768, engines=2, memory=8 * GIB).context == MOST_CONTEXT == 16_384
    found = sizes(SMOLLM, trained=8192, engines=2, memory=8 * GIB)
    assert (found.context, found.limit) == (8192, "trained")
    assert sizes(SMOLLM, trained=512, engines=2, memory=GIB // 8).context == 512


def test_memory_limits_the_default_context_but_not_below_4096() -> None:
    found = sizes(QWEN, trained=32_768, engines=2, memory=2 * (650 << 20) + 2 * 10_000 * 12_288)
    assert (found.context, found.limit) == (10_000 // STEP * STEP, "memory")
    found = sizes(QWEN, trained=32_768, engines=2, memory=GIB)
    assert (found.context, found.limit) == (LEAST_CONTEXT, "least")


def test_shared_weights_count_once_and_others_in_each_engine() -> None:
    memory = 400 * (1 << 20) + 2 * OVERHEAD + 2 * 8192 * 12_288
    shared = ModelBytes(weights=400 << 20, shared=True, token=12_288, sequence=0)
    assert sizes(shared, trained=32_768, engines=2, memory=memory).context == 8192
    assert sizes(QWEN, trained=32_768, engines=2, memory=memory).limit == "least"


def test_engine_memory_is_the_share_of_memory_unless_it_is_set() -> None:
    assert sizes(QWEN, trained=32_768, engines=4, memory=8 * GIB).engine_memory == 2 * GIB
    found = sizes(QWEN, trained=32_768, engines=4, memory=8 * GIB, engine_memory=(650 << 20) + 8192 * 12_288)
    assert (found.context, found.limit) == (8192, "engine_memory")


def test_a_context_that_is_set_is_limited_by_the_model_only() -> None:
    found = sizes(QWEN, trained=32_768, engines=2, memory=GIB, context=20_000)
    assert (found.context, found.limit, found.cells) == (20_000, "context", 20_000)
    found = sizes(QWEN, trained=32_768, engines=2, memory=GIB, context=1 << 20)
    assert (found.context, found.limit) == (32_768, "trained")


def test_only_a_set_engine_memory_gives_an_engine_more_than_32768_cells() -> None:
    assert sizes(QWEN, trained=32_768, engines=1, memory=64 * GIB).cells == 32_768
    assert sizes(QWEN, trained=32_768, engines=1, memory=64 * GIB, engine_memory=32 * GIB).cells == 8 * 16_384


def test_a_recurrent_model_has_its_own_context_whatever_the_memory() -> None:
    assert sizes(MAMBA, trained=8192, engines=2, memory=GIB // 4).context == 8192


@given(st.integers(1, 8), st.integers(1 << 26, 1 << 36), st.integers(256, 1 << 17), st.booleans())
def test_every_engine_has_the_cells_of_one_context_and_all_fit_the_memory(
    engines: int, memory: int, trained: int, shared: bool
) -> None:
    model = ModelBytes(weights=400 << 20, shared=shared, token=12_288, sequence=0)
    found = sizes(model, trained=trained, engines=engines, memory=memory)
    assert min(trained, LEAST_CONTEXT) <= found.context <= min(trained, MOST_CONTEXT)
    assert found.cells >= found.context
    weights = model.weights * (1 if shared else engines)
    used = weights + engines * (OVERHEAD + found.cells * model.token)
    assert used <= memory or found.limit == "least" or found.context <= LEAST_CONTEXT


@pytest.mark.parametrize("trained", [4096, 2048])
def test_a_model_trained_for_no_more_than_the_least_keeps_its_context(trained: int) -> None:
    found = sizes(QWEN, trained=trained, engines=2, memory=GIB // 4)
    assert (found.context, found.limit) == (trained, "trained")
