"""Placement of requests, without running engines."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from engine import WIDEST, EngineProcess, State, WorkerConfig
from gateway.scheduling.dispatcher import Demand, Dispatcher, Placement
from tests.support.plans import MEASURED


def engines(count: int, cells: int = 1000) -> list[EngineProcess]:
    """Engines that are loaded and idle, as far as a dispatcher sees."""
    config = WorkerConfig("unused", cells, 32, MEASURED)
    made = [EngineProcess(str(i), config, on_change=lambda _: None) for i in range(count)]
    for engine in made:
        engine.state = State.IDLE
    return made


def placed(dispatcher: Dispatcher, demand: Demand) -> Placement:
    placement = dispatcher.place(demand)
    assert placement is not None
    return placement


def test_requests_spread_and_a_conversation_goes_home() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], MEASURED)
    first, second = placed(dispatcher, Demand(10)), placed(dispatcher, Demand(10))
    assert {first.engine, second.engine} == {one, two}
    dispatcher.settle("resp_1", second.engine)
    dispatcher.release(first)
    dispatcher.release(second)
    assert placed(dispatcher, Demand(200, "resp_1", tokens=150, known=100)).engine is second.engine


def test_an_engine_that_could_not_load_the_model_is_asked_only_when_none_could() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], MEASURED)
    two.state, two.load_failed = State.FAILED, True
    assert [placed(dispatcher, Demand(10)).engine for _ in range(8)] == [one] * 8
    one.state = State.FAILED  # killed, and restarted soon
    assert dispatcher.place(Demand(10)) is None
    one.load_failed = True  # now a request may try the engine, to report the reason
    assert dispatcher.place(Demand(10)) is not None


def test_an_engine_that_unloads_is_not_taken_for_a_loaded_one() -> None:
    one, two = engines(2)
    one._stopping = True
    assert placed(Dispatcher([one, two], MEASURED), Demand(10)).engine is two


def test_a_conversation_leaves_home_when_waiting_there_costs_more_than_moving() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], MEASURED)
    dispatcher.settle("resp_1", one)
    placed(dispatcher, Demand(10))  # somebody streams at home
    short = Demand(400, "resp_1", tokens=230, known=200, stored=True)
    lost = Demand(3000, "resp_1", tokens=2030, known=2000, stored=False)
    assert placed(dispatcher, lost).engine is one
    dispatcher = Dispatcher([one, two], MEASURED)
    dispatcher.settle("resp_1", one)
    placed(dispatcher, Demand(10))
    assert placed(dispatcher, short).engine is two


def test_many_gather_in_one_engine() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], MEASURED)
    for _ in range(16):
        placed(dispatcher, Demand(10))
    widths = sorted(len(dispatcher._placed[engine]) for engine in (one, two))
    assert widths[0] <= 4


def test_requests_with_running_prompts_move_when_one_engine_serves_all_better() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], MEASURED)
    left: list[Placement] = []
    for _ in range(9):
        placement = placed(dispatcher, Demand(300, tokens=30, stored=True))
        placement.leave = partial(left.append, placement)
    placed(dispatcher, Demand(300, tokens=30, stored=True))
    assert left
    for placement in left:
        dispatcher.arrive(placement)
    assert sorted(len(dispatcher._placed[engine]) for engine in (one, two)) == [0, 10]


def test_a_request_alone_on_an_engine_stays_when_another_engine_is_briefly_idle() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], MEASURED)
    left: list[Placement] = []
    first, second = (placed(dispatcher, Demand(300, tokens=30, stored=True)) for _ in range(2))
    for placement in (first, second):
        placement.streaming = True
        placement.placed -= 60
        placement.leave = partial(left.append, placement)
    assert first.engine is not second.engine
    dispatcher.release(first)  # whose reader asks again at once
    dispatcher.rebalance()
    assert left == []


def test_a_brief_drop_in_load_moves_no_request() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], MEASURED)
    left: list[Placement] = []
    for _ in range(9):
        placement = Placement(one, Demand(300, tokens=30, stored=True), streaming=True)
        placement.placed -= 60
        placement.leave = partial(left.append, placement)
        dispatcher._placed[one].append(placement)
    dispatcher.rebalance()
    for placement in list(dispatcher._placed[one])[:4]:
        dispatcher.release(placement)
    assert left == []


def test_an_engine_that_is_not_loaded_is_warmed_for_the_next_while_the_first_begins_at_once() -> None:
    one, two = engines(2)
    two.state = State.STOPPED
    warmed: list[EngineProcess] = []
    dispatcher = Dispatcher([one, two], MEASURED, warm=warmed.append)
    assert placed(dispatcher, Demand(10, tokens=5)).engine is one
    assert warmed == []
    assert placed(dispatcher, Demand(10, tokens=5)).engine is one
    assert warmed == [two]


def test_an_engine_is_never_sent_more_than_its_cells_or_its_width() -> None:
    dispatcher = Dispatcher(engines(1), MEASURED.limited(1))
    big = placed(dispatcher, Demand(990))
    assert dispatcher.place(Demand(11)) is None
    dispatcher.release(big)
    assert all(dispatcher.place(Demand(1)) for _ in range(WIDEST))
    assert dispatcher.place(Demand(1)) is None


def test_a_failed_engine_gets_nothing() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], MEASURED)
    one.state = State.FAILED
    placements = [dispatcher.place(Demand(1)) for _ in range(3)]
    assert {placement.engine for placement in placements if placement} == {two}


def test_streaming_requests_move_away_from_a_long_prompt() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], MEASURED)
    left: list[Placement] = []
    for _ in range(2):
        placement = placed(dispatcher, Demand(300, tokens=30, stored=True))
        placement.streaming, placement.placed = True, placement.placed - 60
        placement.leave = partial(left.append, placement)
    long = placed(dispatcher, Demand(1200, tokens=1000))
    [moved] = left
    assert moved.engine is long.engine
    dispatcher.arrive(moved)
    assert moved.engine is not long.engine


def test_a_request_that_arrives_during_a_long_prompt_goes_to_another_engine() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], MEASURED)
    long = placed(dispatcher, Demand(1200, tokens=1000))
    assert {placed(dispatcher, Demand(300, tokens=30)).engine for _ in range(2)} == {one, two} - {long.engine}
    long.streaming = True
    assert placed(dispatcher, Demand(300, tokens=30)).engine is long.engine


def test_a_request_that_just_began_streaming_moves_from_a_long_prompt_later_but_not_to_another() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], MEASURED)
    left: list[Placement] = []
    reader = Placement(one, Demand(300, tokens=30, stored=True), streaming=True)
    reader.leave = partial(left.append, reader)
    prompts = [Placement(engine, Demand(1200, tokens=1000), prompt=5.0) for engine in (one, two)]
    for placement in (reader, *prompts):
        dispatcher._placed[placement.engine].append(placement)
    dispatcher.rebalance()
    reader.placed -= 60  # it has come to rest, but the other engine has a long prompt too
    dispatcher.rebalance()
    assert left == []
    prompts[1].streaming = True
    dispatcher.rebalance()
    assert left == [reader]
    assert reader.target is two


def test_when_few_are_left_in_one_engine_they_spread() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], MEASURED)
    left: list[Placement] = []
    together = [Placement(one, Demand(300, tokens=30, stored=True), streaming=True) for _ in range(3)]
    for placement in together:
        placement.placed -= 60
        placement.leave = partial(left.append, placement)
        dispatcher._placed[one].append(placement)
    dispatcher.release(together[0])
    [moved] = left
    assert moved.target is two


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.integers(1, 400)),
        st.tuples(st.sampled_from(["release", "stream", "arrive", "fail", "restart"]), st.integers(0, 20)),
    ),
    max_size=80,
)


@given(happenings)
def test_no_request_is_lost_or_doubled_and_no_engine_is_overcommitted(happened: list[tuple[str, int]]) -> None:
    pool = engines(2)
    dispatcher = Dispatcher(pool, MEASURED)
    running: list[Placement] = []
    leaving: list[Placement] = []
    for event, value in happened:
        chosen = running[value % len(running)] if running else None
        match event:
            case "place":
                placement = dispatcher.place(Demand(value, tokens=value // 2, stored=True))
                if placement is not None:
                    placement.leave = partial(leaving.append, placement)
                    placement.placed -= 60
                    running.append(placement)
            case "release" if chosen:
                running.remove(chosen)
                dispatcher.release(chosen)
            case "stream" if chosen:
                chosen.streaming = True
                dispatcher.rebalance()
            case "arrive":
                for placement in [p for p in leaving if p in running]:
                    dispatcher.arrive(placement)
                leaving.clear()
            case "fail":
                pool[value % 2].state = State.FAILED
            case "restart":
                pool[value % 2].state = State.IDLE
        assert dispatcher.running == len(running)
        held = [placement for placed in dispatcher._placed.values() for placement in placed]
        assert sorted(map(id, held)) == sorted(map(id, running))
        assert all(placement.engine is engine for engine, placed in dispatcher._placed.items() for placement in placed)
