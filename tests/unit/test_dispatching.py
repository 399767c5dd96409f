"""Placement of requests, without running engines."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import WIDEST, Engine, State, WorkerConfig
from engine.learning import LearningCostModel
from engine.process import EngineProcess
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.placement import Demand, Placement, prefixes
from tests.support.clock import Clock
from tests.support.plans import MEASURED

READER = Demand(30, 270, stored=True)
LONG = Demand(1000, 200)


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


class Pair:
    """Two engines and a dispatcher whose clock the test sets."""

    def __init__(self) -> None:
        self.clock = Clock(0.0)
        self.left: list[tuple[Engine, int]] = []
        """The requests that the dispatcher suspended."""
        self.engines = engines(2, cells=10_000)
        self.dispatcher = Dispatcher(
            self.engines,
            LearningCostModel(MEASURED),
            suspend=lambda *request: self.left.append(request),
            clock=self.clock,
        )

    def later(self) -> None:
        """Let the requests come to rest."""
        self.clock.now += 60

    def reader(self) -> Placement:
        """Return a request whose answer is being streamed."""
        placement = placed(self.dispatcher, READER)
        self.dispatcher.started(placement, placement.number)
        self.dispatcher.streams(placement)
        return placement

    def gather(self, placements: list[Placement]) -> None:
        """Move the requests into the first engine."""
        self.engines[1].state = State.FAILED
        for i, placement in enumerate(placements):
            placements[i] = self.dispatcher.move(placement)
            self.dispatcher.started(placements[i], placement.number)
        self.engines[1].state = State.IDLE
        self.left.clear()


def test_requests_spread_and_a_conversation_goes_home() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], LearningCostModel(MEASURED))
    first, second = placed(dispatcher, Demand(0, 10)), placed(dispatcher, Demand(0, 10))
    assert {first.engine, second.engine} == {one, two}
    dispatcher.settle("resp_1", second)
    dispatcher.release(first)
    dispatcher.release(second)
    assert placed(dispatcher, Demand(150, 50, known=100, previous="resp_1")).engine is second.engine


def test_requests_with_one_prompt_go_to_one_engine_that_computes_it_once() -> None:
    dispatcher = Dispatcher(engines(2, cells=10_000), LearningCostModel(MEASURED))
    demand = Demand(1000, 100, group="group_1")
    assert len({placed(dispatcher, demand).engine for _ in range(4)}) == 1
    assert placed(dispatcher, Demand(1000, 100)).engine is not placed(dispatcher, demand).engine


SYSTEM = list(range(200))
"""Instructions that several prompts begin with."""


def opening(scope: str, *, public: int = 0, known: int = 0) -> Demand:
    """Return the demand of a first question after SYSTEM."""
    tokens = [*SYSTEM, *range(1000, 1030)]
    return Demand(len(tokens), 100, known=known, stored=True, prefixes=prefixes(tokens, scope, public))


@pytest.mark.parametrize(
    ("other", "together"),
    [
        (opening("a"), True),
        (opening("b"), False),
        (opening("a", known=190), False),
        (Demand(230, 100), False),
        (Demand(2000, 100, prefixes=prefixes([*SYSTEM, *range(5000, 6800)], "a", 0)), False),
    ],
    ids=["same user", "another user", "already known", "another prompt", "a long prompt"],
)
def test_a_common_beginning_is_computed_by_one_engine(other: Demand, together: bool) -> None:
    dispatcher = Dispatcher(engines(2, cells=10_000), LearningCostModel(MEASURED))
    first = placed(dispatcher, opening("a"))
    assert (placed(dispatcher, other).engine is first.engine) is together


def test_users_share_the_computation_of_public_instructions() -> None:
    dispatcher = Dispatcher(engines(2, cells=10_000), LearningCostModel(MEASURED))
    first, second = (placed(dispatcher, opening(user, public=len(SYSTEM))) for user in "ab")
    assert first.engine is second.engine


def test_requests_with_a_common_beginning_spread_once_both_are_answered() -> None:
    pair = Pair()
    openings = [placed(pair.dispatcher, opening("a")) for _ in range(2)]
    assert {placement.engine for placement in openings} == {openings[0].engine}
    for placement in openings:
        pair.dispatcher.started(placement, placement.number)
        pair.dispatcher.streams(placement)
    pair.later()
    pair.dispatcher.rebalance()
    assert len(pair.left) == 1


def test_an_engine_that_could_not_load_the_model_is_asked_only_when_none_could() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], LearningCostModel(MEASURED))
    two.state, two.load_failed = State.FAILED, True
    assert [placed(dispatcher, Demand(0, 10)).engine for _ in range(8)] == [one] * 8
    one.state = State.FAILED  # killed, and restarted soon
    assert dispatcher.place(Demand(0, 10)) is None
    one.load_failed = True  # now a request may try the engine, to report the reason
    assert dispatcher.place(Demand(0, 10)) is not None


def test_an_engine_that_unloads_is_not_taken_for_a_loaded_one() -> None:
    one, two = engines(2)
    one._stopping = True
    assert placed(Dispatcher([one, two], LearningCostModel(MEASURED)), Demand(0, 10)).engine is two


def test_a_conversation_leaves_home_when_waiting_there_costs_more_than_moving() -> None:
    short = Demand(230, 170, known=200, previous="resp_1", stored=True)
    lost = Demand(2030, 970, known=2000, previous="resp_1")
    for demand, stays in ((lost, True), (short, False)):
        dispatcher = Dispatcher(engines(2, cells=10_000), LearningCostModel(MEASURED))
        home = placed(dispatcher, Demand(0, 10))  # somebody streams at home
        dispatcher.settle("resp_1", home)
        assert (placed(dispatcher, demand).engine is home.engine) is stays


def test_many_gather_in_one_engine() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], LearningCostModel(MEASURED))
    placements = [placed(dispatcher, Demand(0, 10)) for _ in range(16)]
    assert min(Counter(placement.engine for placement in placements).values()) <= 4


def test_requests_with_running_prompts_move_when_one_engine_serves_all_better() -> None:
    one, two = engines(2, cells=10_000)
    left: list[int] = []
    dispatcher = Dispatcher([one, two], LearningCostModel(MEASURED), suspend=lambda _, number: left.append(number))
    placements = [placed(dispatcher, READER) for _ in range(9)]
    for placement in placements:
        dispatcher.started(placement, placement.number)
    placements.append(placed(dispatcher, READER))
    assert left
    for number in left:
        dispatcher.stopped(placements[number])
        placements[number] = dispatcher.move(placements[number])
    assert len({placement.engine for placement in placements}) == 1


def test_a_request_alone_on_an_engine_stays_when_another_engine_is_briefly_idle() -> None:
    pair = Pair()
    first, second = pair.reader(), pair.reader()
    pair.later()
    pair.dispatcher.rebalance()
    assert first.engine is not second.engine
    pair.dispatcher.release(first)  # whose reader asks again at once
    pair.dispatcher.rebalance()
    assert pair.left == []


def test_a_brief_drop_in_load_moves_no_request() -> None:
    pair = Pair()
    readers = [pair.reader() for _ in range(9)]
    pair.gather(readers)
    pair.later()
    pair.dispatcher.rebalance()
    for placement in readers[:4]:
        pair.dispatcher.release(placement)
    assert pair.left == []


def test_an_engine_that_is_not_loaded_is_warmed_for_the_next_while_the_first_begins_at_once() -> None:
    one, two = engines(2)
    two.state = State.STOPPED
    warmed: list[Engine] = []
    dispatcher = Dispatcher([one, two], LearningCostModel(MEASURED), warm=warmed.append)
    assert placed(dispatcher, Demand(5, 5)).engine is one
    assert warmed == []
    assert placed(dispatcher, Demand(5, 5)).engine is one
    assert warmed == [two]


def test_an_engine_is_never_sent_more_than_its_cells_or_its_width() -> None:
    dispatcher = Dispatcher(engines(1), LearningCostModel(MEASURED.limited(1)))
    big = placed(dispatcher, Demand(0, 990))
    assert dispatcher.place(Demand(0, 11)) is None
    dispatcher.release(big)
    assert all(dispatcher.place(Demand(0, 1)) for _ in range(WIDEST))
    assert dispatcher.place(Demand(0, 1)) is None


def test_a_failed_engine_gets_nothing() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two], LearningCostModel(MEASURED))
    one.state = State.FAILED
    placements = [dispatcher.place(Demand(0, 1)) for _ in range(3)]
    assert {placement.engine for placement in placements if placement} == {two}


def test_streaming_requests_move_away_from_a_long_prompt() -> None:
    pair = Pair()
    readers = [pair.reader() for _ in range(2)]
    pair.later()
    long = placed(pair.dispatcher, LONG)
    [(engine, number)] = pair.left
    assert engine is long.engine
    assert pair.dispatcher.move(readers[number]).engine is not long.engine


def test_a_request_that_arrives_during_a_long_prompt_goes_to_another_engine() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], LearningCostModel(MEASURED))
    long = placed(dispatcher, LONG)
    assert {placed(dispatcher, Demand(30, 270)).engine for _ in range(2)} == {one, two} - {long.engine}
    dispatcher.streams(long)
    assert placed(dispatcher, Demand(30, 270)).engine is long.engine


def test_a_request_that_just_began_streaming_moves_from_a_long_prompt_later_but_not_to_another() -> None:
    pair = Pair()
    prompts = [placed(pair.dispatcher, LONG) for _ in range(2)]
    reader = pair.reader()
    assert {placement.engine for placement in prompts} == set(pair.engines)
    pair.dispatcher.rebalance()
    pair.later()  # the reader has come to rest, but the other engine has a long prompt too
    pair.dispatcher.rebalance()
    assert pair.left == []
    pair.dispatcher.streams(next(prompt for prompt in prompts if prompt.engine is not reader.engine))
    pair.dispatcher.rebalance()
    assert pair.left == [(reader.engine, reader.number)]
    assert pair.dispatcher.move(reader).engine is not reader.engine


def test_when_few_are_left_in_one_engine_they_spread() -> None:
    pair = Pair()
    readers = [pair.reader() for _ in range(3)]
    pair.gather(readers)
    pair.later()
    pair.dispatcher.release(readers.pop())
    [(engine, number)] = pair.left
    assert pair.dispatcher.move(next(reader for reader in readers if reader.number == number)).engine is not engine


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.integers(1, 400)),
        st.tuples(st.sampled_from(["release", "stream", "arrive", "fail", "restart"]), st.integers(0, 20)),
    ),
    max_size=80,
)


@given(happenings)
def test_no_request_is_lost_or_doubled_and_no_engine_is_overcommitted(happened: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.scheduling.dispatcher.MIN_STAY", -1)
        happen(happened)


def check(placements: list[Placement]) -> None:
    """No engine has more requests or cells than it can hold."""
    requests, cells = Counter[Engine](), Counter[Engine]()
    for placement in placements:
        requests[placement.engine] += 1
        cells[placement.engine] += placement.demand.cells
    assert max(requests.values(), default=0) <= WIDEST
    assert all(total <= engine.cells for engine, total in cells.items())


def happen(happened: list[tuple[str, int]]) -> None:
    """Let all this happen, and check the dispatcher's reservations after each event."""
    pool = engines(2)
    leaving: set[int] = set()
    dispatcher = Dispatcher(pool, LearningCostModel(MEASURED), suspend=lambda _, number: leaving.add(number))
    running: dict[int, Placement] = {}
    for event, value in happened:
        chosen = list(running.values())[value % len(running)] if running else None
        match event:
            case "place":
                placement = dispatcher.place(Demand(value // 2, value - value // 2, stored=True))
                if placement is not None:
                    dispatcher.started(placement, placement.number)
                    assert placement.number not in running
                    running[placement.number] = placement
            case "release" if chosen:
                del running[chosen.number]
                leaving.discard(chosen.number)
                dispatcher.release(chosen)
            case "stream" if chosen:
                dispatcher.streams(chosen)
                dispatcher.rebalance()
            case "arrive":
                for number in leaving:
                    dispatcher.stopped(running[number])
                    running[number] = dispatcher.move(running[number])
                    dispatcher.started(running[number], number)
                leaving.clear()
            case "fail":
                pool[value % 2].state = State.FAILED
            case "restart":
                pool[value % 2].state = State.IDLE
        assert dispatcher.running == len(running)
        check(list(running.values()))
