"""Steps in the main context, in the annex and on seats, in any order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ModelLoadError
from engine.kv import annex, seats
from engine.kv.manager import CachedSequence
from engine.kv.places import Places
from engine.scheduler import Sequence, Step
from tests.support.cells import Cells, Chairs

COUNT, PROMPT = 6, 30


class Context(Cells):
    """A context without a model, with the constructor of engine.llama.Context."""

    def __init__(self, _model: object, *, cells: int, sequences: int, threads: int) -> None:
        assert threads == 1
        super().__init__(sequences, cells)


class Streams(Chairs):
    """A context of seats without a model, with the constructor of engine.llama.Streams."""

    def __init__(self, _model: object, sequences: int, cells: int) -> None:
        super().__init__(sequences, cells)


def no_memory(*_: object, **__: object) -> Any:
    """Simulate a context for which there is no memory."""
    raise ModelLoadError("no context can be created")


@contextlib.contextmanager
def small() -> Iterator[pytest.MonkeyPatch]:
    """Patch Places to use no model, and to use the annex and the seats for small gains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.kv.places.Context", Context)
        patch.setattr("engine.kv.places.Streams", Streams)
        for name, value in {"CELLS": 300, "COUNTS": (2, 6), "WORTH": 20, "SLACK": 3}.items():
            patch.setattr(seats, name, value)
        for name, value in {"ANNEX_CELLS": 100, "SLOTS": 3, "CROWD": 40, "WORTH": 0}.items():
            patch.setattr(annex, name, value)
        yield patch


def places(cells: int = 1000) -> Places:
    """Return Places with a dummy model."""
    model: Any = SimpleNamespace(has_blocks=True)
    return Places(model, cells=cells, sequences=COUNT)


def sequence(number: int) -> Sequence:
    """Return a sequence whose tokens differ from those of all others."""
    return Sequence(number, CachedSequence(number), [1000 * number + p for p in range(PROMPT + number)], 0, 1000)


def step(sequences: list[Sequence], chosen: set[int], rows: int, *, decodes: bool) -> Step:
    """Return a step of decoding sequences (a round, if it has all of them) or of prompts."""
    decoding = [s for s in sequences if s.computed >= s.prompt]
    if decodes:
        group = [s for s in decoding if s.request in chosen]
        for s in group:
            s.tokens.append(1000 * s.request + len(s.tokens))
        padding = min(rows, COUNT - len(group))
        return Step([(s, 1) for s in group], padding, round=bool(group) and len(group) == len(decoding))
    prompts = [s for s in sequences if s not in decoding and s.request in chosen]
    return Step([(s, min(rows, s.pending)) for s in prompts])


Steps = st.lists(
    st.tuples(
        st.just(set(range(COUNT))) | st.sets(st.integers(0, COUNT - 1), min_size=1),
        st.integers(1, 40),
        st.sampled_from([True, True, False]),
    ),
    min_size=20,
    max_size=80,
)


@settings(max_examples=40)
@pytest.mark.parametrize("missing", ["", "Streams", "annex"])
@given(steps=Steps, cells=st.sampled_from([200, 400, 1000]))
def test_the_main_context_has_all_computed_cells_whichever_context_computed_them(
    missing: str, steps: list[Any], cells: int
) -> None:
    with small() as patch:
        if missing == "Streams":
            patch.setattr("engine.kv.places.Streams", no_memory)
        here = places(cells)
        if missing == "annex":
            patch.setattr(here._annex, "_make", no_memory)
        home: Any = here.home
        sequences = [sequence(i) for i in range(COUNT)]
        for chosen, rows, decodes in steps:
            made = step(sequences, chosen, rows, decodes=decodes)
            used = sum(len(s.resident.tokens) for s in sequences)
            if not made.parts or sum(s.computed for s in sequences) + made.rows > cells:
                continue
            computed = here.compute(made, used=used)
            assert len(computed.rows) == len(made.parts)
            for s in sequences:
                assert s.resident.tokens == s.tokens[: len(s.resident.tokens)] == home.held[s.request]
        for s in sequences:
            here.leave(s)
            assert home.held[s.request] == s.resident.tokens == s.tokens[: s.computed]


def test_a_seated_sequence_is_copied_to_the_main_context_before_another_context_computes_it() -> None:
    """Otherwise the annex would copy cells from the main context that are missing there."""
    with small():
        here = places()
        sequences = [sequence(i) for i in range(3)]
        here.compute(Step([(s, s.pending) for s in sequences]), used=0)
        used = sum(s.computed for s in sequences)
        for _ in range(5):
            here.compute(step(sequences, {0, 1, 2}, 0, decodes=True), used=used)
        assert [len(s.resident.tokens) for s in sequences] == [30, 31, 32], "they are seated"
        computed = here.compute(step(sequences, {1}, 0, decodes=True), used=used)
        assert computed.context is not here.home
        assert len(sequences[1].resident.tokens) == 37
