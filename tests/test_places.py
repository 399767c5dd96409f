"""Where steps are computed: at home, in the annex and on seats, by turns and in any order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import annex, seats
from engine.errors import ModelLoadError
from engine.kv_cache_manager import CachedSequence
from engine.places import Places
from engine.scheduler import Sequence, Step
from tests.cells import Cells, Chairs

COUNT, PROMPT = 6, 30


class Context(Cells):
    """Made as engine.llama's."""

    def __init__(self, _model: object, *, cells: int, sequences: int, threads: int) -> None:
        assert threads == 1
        super().__init__(sequences, cells)


class Streams(Chairs):
    """Made as engine.llama's."""

    def __init__(self, _model: object, sequences: int, cells: int) -> None:
        super().__init__(sequences, cells)


def no_memory(*_: object, **__: object) -> Any:
    """In place of a context that cannot be made."""
    raise ModelLoadError("no context could be made")


@contextlib.contextmanager
def small() -> Iterator[pytest.MonkeyPatch]:
    """Places without a model, in which both ways from home are taken for little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.places.Context", Context)
        patch.setattr("engine.places.Streams", Streams)
        for name, value in {"CELLS": 300, "COUNTS": (2, 6), "WORTH": 20, "SLACK": 3}.items():
            patch.setattr(seats, name, value)
        for name, value in {"ANNEX_CELLS": 100, "SLOTS": 3, "CROWD": 40, "WORTH": 0}.items():
            patch.setattr(annex, name, value)
        yield patch


def places(cells: int = 1000) -> Places:
    """Of a model that nobody asks for anything."""
    model: Any = SimpleNamespace(has_blocks=True)
    return Places(model, cells=cells, sequences=COUNT)


def sequence(number: int) -> Sequence:
    """One whose tokens no other has."""
    return Sequence(number, CachedSequence(number), [1000 * number + p for p in range(PROMPT + number)], 0, 1000)


def step(sequences: list[Sequence], chosen: set[int], rows: int, *, decodes: bool) -> Step:
    """Prompts and answers never share one; a step of all answers is a round."""
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
def test_home_has_all_that_was_computed_wherever_that_was(missing: str, steps: list[Any], cells: int) -> None:
    with small() as patch:
        if missing == "Streams":
            patch.setattr("engine.places.Streams", no_memory)
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


def test_an_answer_on_a_seat_goes_home_before_it_is_computed_elsewhere() -> None:
    """The annex would bring from home what is not there."""
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
