"""The scheduler and the KV cache manager, without a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cost_model import BATCH, WIDEST
from engine.kv.manager import CachedSequence, KVCacheManager
from engine.learning import LearningCostModel
from engine.scheduler import Scheduler, Sequence
from tests.support.cells import Cells
from tests.support.plans import MEASURED

requests = st.tuples(
    st.lists(st.integers(0, 1), min_size=1, max_size=8),  # two tokens only: prefixes are often shared
    st.sampled_from("ab"),
    st.integers(1, 6),
    st.booleans(),
)


@given(st.lists(requests, max_size=30))
def test_cached_sequences_hold_their_tokens_within_their_cells_and_scope(
    asked: list[tuple[list[int], str, int, bool]],
) -> None:
    cells = Cells(4)
    residents = KVCacheManager(cells, cells=24, sequences=4)
    running: list[CachedSequence] = []
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
            # the sequence was used by another scope: its cells must come from a sequence of this scope
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


def test_a_continued_conversation_reuses_its_sequence_and_a_branch_gets_another() -> None:
    cells = Cells(3)
    residents = KVCacheManager(cells, cells=100, sequences=3)
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


def test_forgotten_requests_lose_their_cells_and_others_do_not() -> None:
    cells = Cells(3)
    residents = KVCacheManager(cells, cells=100, sequences=3)
    for request, tokens in ((1, [1, 2]), (2, [3, 4])):
        resident = residents.acquire(request, tokens, "a", 5)
        assert resident is not None
        resident.tokens[:] = cells.held[resident.sequence][:] = tokens
        residents.release(resident)
    residents.forget([1])
    assert sorted(cells.held) == [[], [], [3, 4]]


def test_idle_cells_expire_if_they_are_stored() -> None:
    now = 0.0
    cells = Cells(3)
    residents = KVCacheManager(cells, cells=100, sequences=3, clock=lambda: now)
    for request, stored in ((1, True), (2, False)):
        resident = residents.acquire(request, [request, 7], "a", 5)
        assert resident is not None
        resident.tokens[:] = cells.held[resident.sequence][:] = [request, 7]
        residents.release(resident)
        resident.stored = stored
    now = 4.0
    residents.expire(5.0)
    assert sorted(cells.held) == [[], [1, 7], [2, 7]]
    now = 6.0
    residents.expire(5.0)
    assert sorted(cells.held) == [[], [], [2, 7]]


def sequence(request: int, prompt: int, computed: int = 0) -> Sequence:
    return Sequence(request, CachedSequence(request), list(range(prompt)), computed, 1000)


def scheduler(threads: int = 1) -> Scheduler:
    scheduler = Scheduler(LearningCostModel(MEASURED))
    scheduler.threads = threads
    return scheduler


def decoding(scheduler: Scheduler, count: int) -> list[Sequence]:
    """Return `count` sequences whose prompts are in the cells."""
    sequences = [sequence(i, 1) for i in range(count)]
    for each in sequences:
        scheduler.add(each)
        scheduler.prefilled(each)
    return sequences


def test_few_sequences_are_decoded_one_at_a_time_in_turn() -> None:
    one_thread = scheduler()
    sequences = decoding(one_thread, 3)
    steps = [one_thread.schedule().parts for _ in range(6)]
    assert [[s.request for s, _ in step] for step in steps] == [[s.request] for s in sequences] * 2


def test_many_sequences_are_decoded_in_the_fastest_widths_and_equally_often() -> None:
    two_threads = scheduler(threads=2)
    sequences = decoding(two_threads, WIDEST + 8)
    seen: list[int] = []
    while len(seen) < 6 * len(sequences):
        step = two_threads.schedule()
        assert len(step.parts) in (8, 16)
        seen += [s.request for s, _ in step.parts]
    assert {seen.count(s.request) for s in sequences} == {6}


def test_a_slow_width_is_padded_to_a_faster_one() -> None:
    two_threads = scheduler(threads=2)
    decoding(two_threads, 7)
    step = two_threads.schedule()
    assert (step.rows, step.padding) == (7, 1)


def test_prefill_steps_are_wide_alone_and_narrow_between_decode_rounds() -> None:
    two_threads = scheduler(threads=2)
    two_threads.add(sequence(9, 448))
    [(prompt, n)] = two_threads.schedule().parts
    assert n == 256
    prompt.computed = 256
    decoding(two_threads, 2)
    steps = [[(s.request, n) for s, n in two_threads.schedule().parts] for _ in range(6)]
    assert steps == [[(0, 1)], [(1, 1)], [(9, 96)], [(0, 1)], [(1, 1)], [(9, 96)]]


def test_a_brief_prefill_step_is_short() -> None:
    two_threads = scheduler(threads=2)
    two_threads.add(sequence(9, 1000))
    [(_, n)] = two_threads.schedule(brief=True).parts
    assert n == 24
    assert two_threads.schedule().rows > 150


def test_short_prompts_share_a_step_and_do_not_wait_behind_a_long_one() -> None:
    alone = scheduler(threads=2)
    alone.add(sequence(1, 1000))
    for request in (2, 3):
        alone.add(sequence(request, 30))
    steps = [alone.schedule().parts for _ in range(2)]
    assert [(s.request, n) for s, n in steps[0]] == [(1, 256)]
    assert [(s.request, n) for s, n in steps[1]] == [(2, 30), (3, 30), (1, 196)]


def test_a_prompt_joins_an_already_wide_step_only_as_a_whole() -> None:
    alone = scheduler(threads=2)
    for request, length in enumerate((150, 160, 80, 170)):
        alone.add(sequence(request, length))
    steps = []
    while len(alone):
        parts = alone.schedule().parts
        steps.append([(prompt.request, n) for prompt, n in parts])
        for prompt, n in parts:
            prompt.computed += n
            if prompt.pending == 0:
                alone.remove(prompt)
    assert steps == [[(0, 150), (2, 80)], [(1, 160)], [(3, 170)]]


@pytest.mark.parametrize(("waiting", "rows"), [(1, 96), (2, 256)])
def test_prefill_steps_are_longer_while_several_prompts_wait(waiting: int, rows: int) -> None:
    two_threads = scheduler(threads=2)
    decoding(two_threads, 2)
    for request in range(waiting):
        two_threads.add(sequence(10 + request, 1000))
    steps = [two_threads.schedule() for _ in range(3)]
    assert max(step.rows for step in steps) == rows


def test_an_empty_scheduler_schedules_nothing() -> None:
    empty = scheduler()
    [only] = decoding(empty, 1)
    empty.remove(only)
    assert empty.schedule().parts == []
    assert len(empty) == 0


events = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 400)),
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("threads"), st.integers(1, 2)),
    st.tuples(st.just("step"), st.integers(1, 20)),
)


@given(st.lists(events, max_size=60))
def test_no_sequence_is_lost_or_duplicated_and_all_progress(happened: list[tuple[str, int]]) -> None:
    busy = scheduler()
    running: dict[int, Sequence] = {}
    for number, (event, value) in enumerate(happened):
        match event:
            case "add":
                running[number] = sequence(number, value)
                busy.add(running[number])
            case "abort" if running:
                busy.remove(running.pop(sorted(running)[value % len(running)]))
            case "threads":
                busy.threads = value
            case "step":
                for _ in range(value):
                    advance(busy, running)
    before = {request: s.computed for request, s in running.items()}
    for _ in range(sum(s.pending for s in running.values()) + 2 * len(running)):
        advance(busy, running)
    assert len(busy) == len(running)
    assert all(s.computed > before[request] for request, s in running.items())


def advance(busy: Scheduler, running: dict[int, Sequence]) -> None:
    """Compute one step as the worker does."""
    step = busy.schedule()
    assert bool(step.parts) == bool(running)
    requests = [s.request for s, _ in step.parts]
    assert len(set(requests)) == len(requests)
    assert step.rows + step.padding <= BATCH
    for s, n in step.parts:
        assert running[s.request] is s
        assert 0 < n <= s.pending
        was_prompt = s.computed < s.prompt
        s.computed += n
        if s.pending == 0:
            if was_prompt:
                busy.prefilled(s)
            s.tokens.append(0)
