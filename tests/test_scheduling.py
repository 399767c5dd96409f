"""Who runs next and who owns which cells, without a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.residents import Resident, Residents
from engine.scheduler import CHUNK, CHUNK_BESIDE, GROUP, TURNS_BELOW, Scheduler, Sequence


class Cells:
    """A context that remembers which tokens each sequence holds."""

    def __init__(self, sequences: int) -> None:
        self.held: list[list[int]] = [[] for _ in range(sequences)]

    def share(self, source: int, target: int, length: int) -> None:
        assert self.held[target] == [], "cells would be mixed"
        self.held[target] = self.held[source][:length]

    def cut(self, sequence: int, length: int) -> None:
        del self.held[sequence][length:]


requests = st.tuples(
    st.lists(st.integers(0, 1), min_size=1, max_size=8),  # two tokens only: prefixes are often shared
    st.sampled_from("ab"),
    st.integers(1, 6),
    st.booleans(),
)


@given(st.lists(requests, max_size=30))
def test_residents_hold_what_they_say_within_their_cells_and_scope(
    asked: list[tuple[list[int], str, int, bool]],
) -> None:
    cells = Cells(4)
    residents = Residents(cells, cells=24, sequences=4)
    running: list[Resident] = []
    scopes: dict[int, str] = {}
    for number, (tokens, scope, new, ends) in enumerate(asked):
        resident = residents.acquire(number, tokens, scope, len(tokens) + new)
        if resident is None:
            if running:
                residents.release(running.pop(0))
            continue
        assert resident not in running
        assert len(resident.tokens) < len(tokens)
        assert cells.held[resident.sequence] == resident.tokens == tokens[: len(resident.tokens)]
        if resident.tokens and scopes.get(resident.sequence) not in (None, scope):
            # taken over from another scope: then its cells must have come from one of the same scope
            assert any(scopes.get(i) == scope for i in range(4))
        scopes[resident.sequence] = scope
        rest = [*tokens[len(resident.tokens) :], *[9] * (new - 1)]
        cells.held[resident.sequence] += rest
        resident.tokens += rest
        if ends:
            residents.release(resident)
        else:
            running.append(resident)
        assert sum(map(len, cells.held)) <= 24


def test_a_continued_conversation_keeps_its_sequence_and_a_branch_gets_its_own() -> None:
    cells = Cells(3)
    residents = Residents(cells, cells=100, sequences=3)
    first = residents.acquire(1, [1, 2, 3], "a", 10)
    assert first is not None
    first.tokens[:] = cells.held[first.sequence][:] = [1, 2, 3, 4]
    residents.release(first)
    follow = residents.acquire(2, [1, 2, 3, 4, 5], "a", 10)
    assert follow is first
    residents.release(first)
    branch = residents.acquire(3, [1, 2, 7], "a", 10)
    assert branch is not None
    assert branch is not first
    assert (branch.tokens, first.tokens) == ([1, 2], [1, 2, 3, 4])


def test_forgotten_requests_leave_nothing_but_what_others_continued_stays() -> None:
    cells = Cells(3)
    residents = Residents(cells, cells=100, sequences=3)
    for request, tokens in ((1, [1, 2]), (2, [3, 4])):
        resident = residents.acquire(request, tokens, "a", 5)
        assert resident is not None
        resident.tokens[:] = cells.held[resident.sequence][:] = tokens
        residents.release(resident)
    residents.forget([1])
    assert sorted(cells.held) == [[], [], [3, 4]]


def sequence(request: int, prompt: int, computed: int = 0) -> Sequence:
    return Sequence(request, Resident(request), list(range(prompt)), computed, 1000)


def decoding(scheduler: Scheduler, count: int) -> list[Sequence]:
    """Sequences whose prompts are in the cells."""
    sequences = [sequence(i, 1) for i in range(count)]
    for each in sequences:
        scheduler.add(each)
        scheduler.prefilled(each)
    return sequences


def test_few_take_turns_and_everyone_comes_round() -> None:
    scheduler = Scheduler()
    sequences = decoding(scheduler, TURNS_BELOW - 1)
    steps = [scheduler.schedule() for _ in range(2 * len(sequences))]
    assert [[s.request for s, _ in step] for step in steps] == [[s.request] for s in sequences] * 2


def test_many_go_together_in_groups_and_nobody_is_left_out() -> None:
    scheduler = Scheduler()
    sequences = decoding(scheduler, GROUP + 4)
    seen = [s.request for _ in range(5) for s, n in scheduler.schedule() if n == 1]
    assert len(seen) == 5 * GROUP
    assert {seen.count(s.request) for s in sequences} == {4}


def test_a_prompt_alone_goes_in_wide_chunks_and_beside_answers_in_narrow_ones() -> None:
    scheduler = Scheduler()
    scheduler.add(sequence(9, CHUNK + 5))
    [(prompt, n)] = scheduler.schedule()
    assert n == CHUNK
    prompt.computed = CHUNK
    assert scheduler.schedule() == [(prompt, 5)]
    decoding(scheduler, 1)
    prompt.tokens = list(range(2 * CHUNK))
    kinds = [scheduler.schedule() for _ in range(4)]
    assert [n for [(_, n)] in kinds] in ([1, CHUNK_BESIDE, 1, CHUNK_BESIDE], [CHUNK_BESIDE, 1, CHUNK_BESIDE, 1])


def test_an_empty_scheduler_schedules_nothing() -> None:
    scheduler = Scheduler()
    [only] = decoding(scheduler, 1)
    scheduler.remove(only)
    assert scheduler.schedule() == []
    assert len(scheduler) == 0
