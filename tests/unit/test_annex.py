"""Prompts that are computed in the annex, a small context next to the main one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv import annex
from engine.kv.annex import Annex
from engine.kv.manager import CachedSequence
from engine.llama import Context, Model
from engine.scheduler import Sequence
from tests.support.cells import Cells


def prompt(request: int, tokens: list[int], computed: int = 0) -> Sequence:
    return Sequence(request, CachedSequence(request), tokens, computed, 1000)


@given(st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 40)), max_size=40))
def test_the_main_context_has_all_computed_cells_in_any_order_of_prompts(steps: list[tuple[list[int], int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ANNEX_CELLS": 100, "SLOTS": 3, "CROWD": 0, "WORTH": 0}.items():
            patch.setattr(annex, name, value)
        home = Cells(6, 1000)
        here = Annex(home, lambda: Cells(3, 100))
        prompts = [prompt(i, [*range(i, i + 40 + 7 * i)]) for i in range(6)]
        for chosen, rows in steps:
            parts = [(p, min(rows, p.pending)) for p in (prompts[i] for i in dict.fromkeys(chosen)) if p.pending]
            used = sum(map(len, home.held))
            if parts and here.takes(parts, used):
                here.decode(parts, 1)
            else:  # as in the worker, which may also abort a prompt
                for p, tokens in parts:
                    home.held[p.request] += p.tokens[p.computed : p.computed + tokens]
                    if len(chosen) == 1:
                        here.drop(p.request)
            for p, tokens in parts:
                p.computed += tokens
                p.resident.tokens = p.tokens[: p.computed]
            assert home.held == [p.tokens[: p.computed] for p in prompts]


def test_the_annex_is_used_only_next_to_many_cells_of_others() -> None:
    here = Annex(Cells(6, 100), lambda: Cells(3, 100))
    alone = [(prompt(0, [1] * 500, computed=300), 200)]
    assert not here.takes(alone, used=300)
    assert here.takes(alone, used=300 + annex.CROWD)
    assert not here.takes([(prompt(0, [1] * 500, computed=499), 1)], used=5000)
    assert not here.takes([(prompt(0, [1] * 9000, computed=annex.ANNEX_CELLS), 100)], used=9000)


def test_a_prompt_computed_in_the_annex_has_the_same_logits_and_the_same_kv(tiny_model: Path) -> None:
    model = Model(tiny_model)
    tokens = [7 + i % 50 for i in range(60)]
    whole = Context(model, cells=512, sequences=2, threads=1)
    whole.decode([(token, i, 0, i == 59) for i, token in enumerate(tokens)])
    expected = whole.logits(59).copy()
    home = Context(model, cells=512, sequences=2, threads=1)
    here = Annex(home, lambda: Context(model, cells=512, sequences=2, threads=1))
    mine = Sequence(1, CachedSequence(0), tokens, 0, 100)
    for rows in (25, 35):
        context = here.decode([(mine, rows)], 1)
        mine.computed += rows
    assert np.allclose(context.logits(34), expected, atol=1e-3)
    for each in (whole, home):
        each.decode([(9, 60, 0, True)])
    assert np.allclose(home.logits(0), whole.logits(0), atol=1e-3)
