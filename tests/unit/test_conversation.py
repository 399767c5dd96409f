"""From a request to its prompt: what is appended, truncated and refused; on the tiny model's vocabulary."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from engine import Model
from gateway.conversations.histories import Histories, Known, transcript
from gateway.conversations.prompt_builder import Context, PromptBuilder
from gateway.conversations.turns import Turn
from gateway.errors import ContextLengthExceededError, InvalidRequestError
from gateway.protocol.chat import Stateless, read_chat
from gateway.protocol.items import Item, messages, text_item
from gateway.protocol.requests import ResponseCreate, parse
from tests.support.encoding import LocalEncoder
from tests.support.tiny_model import CHAT_TEMPLATE


@pytest.fixture
def conversations(model: Model) -> PromptBuilder:
    return PromptBuilder(LocalEncoder(model, CHAT_TEMPLATE), limit=200, new_id=lambda prefix: prefix)


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


async def test_a_follow_up_begins_with_the_ids_that_the_model_saw(conversations: PromptBuilder) -> None:
    first = await conversations.context(request(input="hello"), None, now=5, user="u")
    seen = [*first.ids, 7, 8]
    second = await conversations.context(request(input="more"), (turn(first), seen), now=9, user="u")
    assert second.ids[: len(seen)] == seen
    assert (second.known, second.began) == (len(seen), 5)


@pytest.mark.parametrize("role", ["user", "system"])
async def test_what_was_encoded_ahead_begins_the_prompt_that_is_answered(
    conversations: PromptBuilder, role: str
) -> None:
    items = [{"role": role, "content": "hello"}]
    ahead = await conversations.context(request(input=items, generate=False), None, now=5, user="u")
    whole = await conversations.context(
        request(input=[*items, {"role": "user", "content": "more"}]), None, now=5, user="u"
    )
    prepared = replace(turn(ahead), items=ahead.items)
    follow = await conversations.context(request(input="more"), (prepared, ahead.ids), now=9, user="u")
    assert follow.ids == whole.ids
    assert follow.known == len(ahead.ids) < len(whole.ids)


async def test_a_question_encoded_ahead_is_answered_without_another_word(conversations: PromptBuilder) -> None:
    ahead = await conversations.context(request(input="hello", generate=False), None, now=5, user="u")
    prepared = replace(turn(ahead), items=ahead.items)
    asked = await conversations.context(request(previous_response_id="resp_1"), (prepared, ahead.ids), now=9, user="u")
    assert asked.ids == (await conversations.context(request(input="hello"), None, now=5, user="u")).ids


async def test_instructions_alone_can_be_encoded_ahead_but_nothing_cannot(conversations: PromptBuilder) -> None:
    ahead = await conversations.context(request(instructions="be kind", generate=False), None, now=5, user="u")
    prepared = replace(turn(ahead, "be kind"), items=[])
    asked = await conversations.context(
        request(input="hello", instructions="be kind"), (prepared, ahead.ids), now=9, user="u"
    )
    assert (
        asked.ids
        == (await conversations.context(request(input="hello", instructions="be kind"), None, now=5, user="u")).ids
    )
    with pytest.raises(InvalidRequestError, match="the prompt is empty"):
        await conversations.context(request(generate=False), None, now=5, user="u")


async def test_other_instructions_or_another_vocabulary_render_all_anew(conversations: PromptBuilder) -> None:
    first = await conversations.context(request(input="hello"), None, now=5, user="u")
    changed = await conversations.context(
        request(input="more", instructions="!"), (turn(first), [1, 2]), now=9, user="u"
    )
    unknown = await conversations.context(request(input="more"), (turn(first), None), now=9, user="u")
    assert changed.known == unknown.known == 0
    assert len(changed.ids) > len(unknown.ids) > len(first.ids)


async def test_a_developer_is_the_system_to_the_template(conversations: PromptBuilder) -> None:
    items = [{"role": role, "content": "x"} for role in ("developer", "user")]
    context = await conversations.context(request(input=items), None, now=1, user="u")
    assert [message["role"] for message in messages(context.items)] == ["system", "user"]


async def test_truncation_cuts_to_half_at_once_and_the_cut_is_remembered(conversations: PromptBuilder) -> None:
    history = [{"role": role, "content": f"{n}" + "x" * 20} for n in range(4) for role in ("user", "assistant")]
    items = [{"role": "system", "content": "keep"}, *history, {"role": "user", "content": "now"}]
    with pytest.raises(ContextLengthExceededError):
        await conversations.context(request(input=items), None, now=1, user="u")
    context = await conversations.context(request(input=items, truncation="auto"), None, now=1, user="u")
    assert len(context.ids) <= 100
    kept = messages(context.items)
    assert kept[0] == {"role": "system", "content": "keep"}
    assert kept[-1]["content"] == "now"
    assert len(kept) < len(items)
    follow = await conversations.context(request(input="go on"), (turn(context), context.ids), now=2, user="u")
    assert follow.ids[: len(context.ids)] == context.ids


async def test_one_message_that_does_not_fit_is_refused_even_with_truncation(conversations: PromptBuilder) -> None:
    with pytest.raises(ContextLengthExceededError):
        await conversations.context(request(input="x" * 300, truncation="auto"), None, now=1, user="u")


async def test_a_template_that_refuses_is_the_users_to_know(model: Model) -> None:
    encoder = LocalEncoder(model, "{{ raise_exception('no system') }}")
    refusing = PromptBuilder(encoder, limit=200, new_id=lambda prefix: prefix)
    with pytest.raises(InvalidRequestError, match="no system"):
        await refusing.context(request(input="x"), None, now=1, user="u")


THINKING_TEMPLATE = (
    "{% if enable_thinking %}/think\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*texts: str, **fields: Any) -> Stateless:
    """A chat completion of alternating messages, the user's first."""
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return read_chat({"messages": said, **fields})[0]


async def test_a_trailing_answer_leaves_the_last_message_open(conversations: PromptBuilder, model: Model) -> None:
    begun = await conversations.context(chat("hello", "Tea is"), None, now=5, user="u")
    answered = await conversations.context(chat("hello"), None, now=5, user="u")
    assert begun.ids == answered.ids + model.vocabulary.tokenize("Tea is", special=False)
    closed = await conversations.context(chat("hello", "Tea is", add_generation_prompt=True), None, now=5, user="u")
    assert closed.ids[: len(begun.ids)] == begun.ids
    assert len(closed.ids) > len(begun.ids)


async def test_an_answer_that_the_model_gave_is_continued_after_its_own_ids(conversations: PromptBuilder) -> None:
    seen = [*(await conversations.context(chat("hello"), None, now=5, user="u")).ids, 7, 8]
    begun = await conversations.context(chat("hello", "ab"), None, Known(2, seen, "resp_1"), now=5, user="u")
    assert (begun.ids, begun.known) == (seen, len(seen))


@pytest.mark.parametrize("output", [[text_item("b", item_id="msg_1")], []])
def test_a_continued_answer_is_one_message_to_the_client(output: list[Item]) -> None:
    assert transcript(chat("hello", "a "), output) == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "a b" if output else "a "},
    ]


def test_a_truncated_conversation_is_found_as_its_client_sends_it() -> None:
    request, histories = chat("x" * 300, "a", "hello", truncation="auto"), Histories()
    said = transcript(request, [text_item("b", item_id="msg_1")])
    histories.store("t", request, said, [1, 2], "resp_1")
    following = transcript(chat("x" * 300, "a", "hello", "b", "more", truncation="auto"), [])
    assert histories.find("t", request, following) == Known(4, [1, 2], "resp_1")


async def test_thinking_renders_a_conversation_anew_when_it_changes(model: Model) -> None:
    builder = PromptBuilder(LocalEncoder(model, THINKING_TEMPLATE), limit=200, new_id=lambda prefix: prefix)
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    first = await builder.context(request(input="hello"), None, now=5, user="u")
    follow = await builder.context(request(input="more", **thinking), (turn(first), first.ids), now=5, user="u")
    assert follow.known == 0
    assert follow.ids[:6] == model.vocabulary.tokenize("/think", special=False)
    thought = replace(turn(follow), thinking=True)
    again = await builder.context(request(input="more", **thinking), (thought, follow.ids), now=5, user="u")
    assert again.known == len(follow.ids)
    plain, other = chat("hello"), chat("hello", **thinking)
    histories, said = Histories(), transcript(plain, [text_item("b", item_id="msg_1")])
    histories.store("t", plain, said, [1], "resp_1")
    assert histories.find("t", other, said) is None
