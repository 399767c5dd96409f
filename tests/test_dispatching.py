"""Where a request goes, and what its prompt is; with the tiny model's vocabulary and no engine running."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine import WIDEST, EngineProcess, Model, State, WorkerConfig
from gateway.conversation import Context, Conversations
from gateway.dispatcher import Demand, Dispatcher, Placement
from gateway.errors import ContextLengthExceededError, InvalidRequestError
from gateway.prompt import Prompt
from gateway.protocol.items import messages, text_item
from gateway.protocol.requests import ResponseCreate, parse
from gateway.sessions import Turn
from tests.plans import MEASURED
from tests.tiny_model import CHAT_TEMPLATE


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
    one.state = State.FAILED  # killed, and soon mended
    assert dispatcher.place(Demand(10)) is None
    one.load_failed = True  # now a request may hear the reason
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


def test_even_prompts_move_when_so_many_come_that_all_are_better_off_together() -> None:
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


def test_who_is_alone_in_an_engine_stays_there_when_another_falls_idle_for_a_moment() -> None:
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


def test_a_lull_of_a_moment_moves_nobody() -> None:
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


def test_those_who_stream_make_room_for_a_long_prompt() -> None:
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


def test_who_comes_while_a_long_prompt_is_computed_goes_where_there_is_none() -> None:
    one, two = engines(2, cells=10_000)
    dispatcher = Dispatcher([one, two], MEASURED)
    long = placed(dispatcher, Demand(1200, tokens=1000))
    assert {placed(dispatcher, Demand(300, tokens=30)).engine for _ in range(2)} == {one, two} - {long.engine}
    long.streaming = True
    assert placed(dispatcher, Demand(300, tokens=30)).engine is long.engine


def test_who_just_began_to_stream_beside_a_long_prompt_makes_room_later_but_not_beside_another() -> None:
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
        st.tuples(st.sampled_from(["release", "stream", "arrive", "fail", "mend"]), st.integers(0, 20)),
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
            case "mend":
                pool[value % 2].state = State.IDLE
        assert dispatcher.running == len(running)
        held = [placement for placed in dispatcher._placed.values() for placement in placed]
        assert sorted(map(id, held)) == sorted(map(id, running))
        assert all(placement.engine is engine for engine, placed in dispatcher._placed.items() for placement in placed)


@pytest.fixture
def conversations(model: Model) -> Conversations:
    prompt = Prompt(CHAT_TEMPLATE, model.vocabulary, mark=lambda: "f" * 32)
    return Conversations(prompt, limit=200, instructions="", new_id=lambda prefix: prefix)


def request(**fields: Any) -> ResponseCreate:
    message = parse(json.dumps({"type": "response.create", **fields}))
    assert isinstance(message, ResponseCreate)
    return message


def turn(context: Context, instructions: str | None = None) -> Turn:
    items = [*context.items, text_item("ok", item_id="msg_2")]
    return Turn(
        id="resp_1", previous=None, created_at=1, began=context.began, instructions=instructions, items=items,
        input=len(context.items), ended_by=context.ended_by, response={},
    )  # fmt: skip


def test_a_follow_up_begins_with_the_ids_that_the_model_saw(conversations: Conversations) -> None:
    first = conversations.context(request(input="hello"), None, now=5)
    seen = [*first.ids, 7, 8]
    second = conversations.context(request(input="more"), (turn(first), seen), now=9)
    assert second.ids[: len(seen)] == seen
    assert (second.known, second.began) == (len(seen), 5)


@pytest.mark.parametrize("role", ["user", "system"])
def test_what_was_encoded_ahead_begins_the_prompt_that_is_answered(conversations: Conversations, role: str) -> None:
    items = [{"role": role, "content": "hello"}]
    ahead = conversations.context(request(input=items, generate=False), None, now=5)
    whole = conversations.context(request(input=[*items, {"role": "user", "content": "more"}]), None, now=5)
    prepared = replace(turn(ahead), items=ahead.items)
    follow = conversations.context(request(input="more"), (prepared, ahead.ids), now=9)
    assert follow.ids == whole.ids
    assert follow.known == len(ahead.ids) < len(whole.ids)


def test_a_question_encoded_ahead_is_answered_without_another_word(conversations: Conversations) -> None:
    ahead = conversations.context(request(input="hello", generate=False), None, now=5)
    prepared = replace(turn(ahead), items=ahead.items)
    asked = conversations.context(request(previous_response_id="resp_1"), (prepared, ahead.ids), now=9)
    assert asked.ids == conversations.context(request(input="hello"), None, now=5).ids


def test_instructions_alone_can_be_encoded_ahead_but_nothing_cannot(conversations: Conversations) -> None:
    ahead = conversations.context(request(instructions="be kind", generate=False), None, now=5)
    prepared = replace(turn(ahead, "be kind"), items=[])
    asked = conversations.context(request(input="hello", instructions="be kind"), (prepared, ahead.ids), now=9)
    assert asked.ids == conversations.context(request(input="hello", instructions="be kind"), None, now=5).ids
    with pytest.raises(InvalidRequestError, match="nothing to encode"):
        conversations.context(request(generate=False), None, now=5)


def test_other_instructions_or_another_vocabulary_render_all_anew(conversations: Conversations) -> None:
    first = conversations.context(request(input="hello"), None, now=5)
    changed = conversations.context(request(input="more", instructions="!"), (turn(first), [1, 2]), now=9)
    unknown = conversations.context(request(input="more"), (turn(first), None), now=9)
    assert changed.known == unknown.known == 0
    assert len(changed.ids) > len(unknown.ids) > len(first.ids)


def test_a_developer_is_the_system_to_the_template(conversations: Conversations) -> None:
    items = [{"role": role, "content": "x"} for role in ("developer", "user")]
    context = conversations.context(request(input=items), None, now=1)
    assert [message["role"] for message in messages(context.items)] == ["system", "user"]


def test_truncation_cuts_to_half_at_once_and_the_cut_is_remembered(conversations: Conversations) -> None:
    history = [{"role": role, "content": f"{n}" + "x" * 20} for n in range(4) for role in ("user", "assistant")]
    items = [{"role": "system", "content": "keep"}, *history, {"role": "user", "content": "now"}]
    with pytest.raises(ContextLengthExceededError):
        conversations.context(request(input=items), None, now=1)
    context = conversations.context(request(input=items, truncation="auto"), None, now=1)
    assert len(context.ids) <= 100
    kept = messages(context.items)
    assert kept[0] == {"role": "system", "content": "keep"}
    assert kept[-1]["content"] == "now"
    assert len(kept) < len(items)
    follow = conversations.context(request(input="go on"), (turn(context), context.ids), now=2)
    assert follow.ids[: len(context.ids)] == context.ids


def test_one_message_that_does_not_fit_is_refused_even_with_truncation(conversations: Conversations) -> None:
    with pytest.raises(ContextLengthExceededError):
        conversations.context(request(input="x" * 300, truncation="auto"), None, now=1)


def test_a_template_that_refuses_is_the_users_to_know(model: Model) -> None:
    prompt = Prompt("{{ raise_exception('no system') }}", model.vocabulary, mark=lambda: "f" * 32)
    refusing = Conversations(prompt, limit=200, instructions="", new_id=lambda prefix: prefix)
    with pytest.raises(InvalidRequestError, match="no system"):
        refusing.context(request(input="x"), None, now=1)
