"""Where a request goes, and what its prompt is; with the tiny model's vocabulary and no engine running."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from engine import EngineProcess, Model, State, WorkerConfig
from gateway.conversation import Context, Conversations
from gateway.dispatcher import RUNNING, Demand, Dispatcher
from gateway.errors import ContextLengthExceededError, InvalidRequestError
from gateway.prompt import Prompt
from gateway.protocol.items import messages, text_item
from gateway.protocol.requests import ResponseCreate, parse
from gateway.sessions import Turn
from tests.tiny_model import CHAT_TEMPLATE


def engines(count: int, cells: int = 1000) -> list[EngineProcess]:
    config = WorkerConfig("unused", cells, 32)
    return [EngineProcess(str(i), config, on_change=lambda _: None) for i in range(count)]


def test_requests_spread_and_a_conversation_goes_home() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two])
    first, second = dispatcher.place(Demand(10)), dispatcher.place(Demand(10))
    assert first is not None
    assert second is not None
    assert {first.engine, second.engine} == {one, two}
    dispatcher.settle("resp_1", second.engine)
    dispatcher.release(first)
    home = dispatcher.place(Demand(10, "resp_1"))
    assert home is not None
    assert home.engine is second.engine


def test_an_engine_is_never_sent_more_than_its_cells_or_its_width() -> None:
    dispatcher = Dispatcher(engines(1))
    big = dispatcher.place(Demand(990))
    assert big is not None
    assert dispatcher.place(Demand(11)) is None
    dispatcher.release(big)
    assert all(dispatcher.place(Demand(1)) for _ in range(RUNNING))
    assert dispatcher.place(Demand(1)) is None


def test_a_failed_engine_gets_nothing() -> None:
    one, two = engines(2)
    dispatcher = Dispatcher([one, two])
    one.state = State.FAILED
    placements = [dispatcher.place(Demand(1)) for _ in range(3)]
    assert {placement.engine for placement in placements if placement} == {two}


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
