"""What a model thinks before its answer: split off, sent to clients, accepted back, and left to the template."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent, ThinkingBlock
from pydantic import TypeAdapter

from engine import Model
from gateway.conversations.prompt_builder import Context, PromptBuilder
from gateway.conversations.turns import Turn
from gateway.protocol.answer import Answer
from gateway.protocol.anthropic import read_messages
from gateway.protocol.anthropic_events import MessageAnswer
from gateway.protocol.call_format import OWN
from gateway.protocol.chat import read_chat
from gateway.protocol.completions import Completion
from gateway.protocol.events import Event, TerminalEvent, Usage
from gateway.protocol.items import Item, input_item, messages, reasoning_item, text_item
from gateway.protocol.reasoning import Reasoning, ReasoningStart, ReasoningText
from gateway.protocol.requests import ResponseCreate, read_body
from gateway.protocol.response_events import ResponseEvents
from gateway.protocol.tools import OutputConstraint
from tests.support.encoding import LocalEncoder
from tests.support.events import check_types, flat, numbered
from tests.support.templates import TEMPLATES, compose

USER = {"role": "user", "content": "Hi"}
OUTPUTS = [
    ("tagged", "<think>\nHm, <b> or </th.\n</think>\n\nYes.\n", "Hm, <b> or </th.\n", "Yes.\n"),
    ("tagged", " \n<think>Hm", "Hm", ""),
    ("tagged", "<think>Hm</thin", "Hm</thin", ""),
    ("tagged", "<think></think>Yes", "", "Yes"),
    ("tagged", " No <think>x</think>", "", " No <think>x</think>"),
    ("tagged", "<thi", "", "<thi"),
    ("tagged", "", "", ""),
    ("open", "\nHm.\n</think>\n\nYes.", "Hm.\n", "Yes."),
    ("open", "Hm", "Hm", ""),
    (
        "channels",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        "Hm.",
        "Yes.",
    ),
    ("channels", "<|channel|>analysis<|message|>Hm", "Hm", ""),
    ("", "<think>Hm</think>Yes", "", "<think>Hm</think>Yes"),
]


def emitted(text: str, step: int, start: ReasoningStart, *, calls: bool = False) -> list[Event]:
    events = ResponseEvents(
        read_body({"input": "Hi"})[0], response_id="resp_1", model="m", clock=lambda: 1.5, temperature=0.7, top_p=0.8,
        max_output_tokens=9,
    )  # fmt: skip
    constraint = OutputConstraint(reasoning=start, calls=OWN if calls else None)
    answer = Answer(events, form=constraint, new_id=lambda prefix: f"{prefix}_1")
    sent: list[Event] = [events.created(), events.in_progress(), *answer.begin()]
    for at in range(0, len(text), step):
        sent += answer.feed(text[at : at + step])
    return [*sent, *answer.finish(), *flat(events.completed(Usage(1, 0, 1)))]


def output(sent: list[Event]) -> list[Item]:
    assert isinstance(sent[-1], TerminalEvent)
    found: list[Item] = sent[-1].response["output"]
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("start", "text", "thinking", "shown"), OUTPUTS)
def test_reasoning_is_an_item_of_its_own(
    step: int, start: ReasoningStart, text: str, thinking: str, shown: str
) -> None:
    sent = emitted(text, step, start)
    for event in numbered(sent):
        check_types(event)
    parts = {item["type"]: "".join(part["text"] for part in item["content"]) for item in output(sent)}
    assert (parts.get("reasoning", ""), parts.get("message", "")) == (thinking, shown)
    assert list(parts) == [*(["reasoning"] if thinking else []), *(["message"] if shown or not thinking else [])]


def test_a_call_can_follow_reasoning() -> None:
    call = '<think>A call?</think>\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    items = output(emitted(call, 3, "tagged", calls=True))
    assert [item["type"] for item in items] == ["reasoning", "function_call"]
    assert items[1]["arguments"] == '{"a": 1}'


def test_chat_completions_have_reasoning_content() -> None:
    sent = emitted("Hm.</think>Yes.", 5, "open")

    def completion() -> Completion:
        return Completion("resp_1", created=1, model="m", fingerprint="", logprobs=False, usage=False)

    streaming = completion()
    deltas = [chunk["choices"][0]["delta"] for event in sent for chunk in streaming.feed(event)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    message = completion().whole(sent[-1].response)["choices"][0]["message"]  # type: ignore[attr-defined]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")


@pytest.mark.parametrize("shows", [False, True])
def test_messages_of_anthropics_api_have_blocks_of_reasoning_if_asked(shows: bool) -> None:
    sent = emitted("Hm.</think>Yes.", 5, "open")
    answer = MessageAnswer("resp_1", model="m", usage=Usage(1, 0, 0), shows_thinking=shows)
    streamed = [event for item in sent for event in answer.feed(item)]
    for event in streamed:
        TypeAdapter(RawMessageStreamEvent).validate_python(event)
    kinds = ["thinking", "text"] if shows else ["text"]
    starts = [event for event in streamed if event["type"] == "content_block_start"]
    assert [(start["index"], start["content_block"]["type"]) for start in starts] == list(enumerate(kinds))
    deltas = [event["delta"] for event in streamed if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == ("Hm." if shows else "")
    assert "".join(delta.get("signature", "") for delta in deltas) == ("rs_1" if shows else "")
    assert sum(event["type"] == "content_block_stop" for event in streamed) == len(kinds)
    assert isinstance(sent[-1], TerminalEvent)
    message = Message.model_validate(answer.whole(sent[-1]))
    assert [block.type for block in message.content] == kinds
    if shows:
        assert message.content[0] == ThinkingBlock(type="thinking", thinking="Hm.", signature="rs_1")
        thought = message.content[0].model_dump()
        request, _ = read_messages({"messages": [USER, {"role": "assistant", "content": [thought]}, USER]})
        assert request.items[1] == Reasoning([ReasoningText("Hm.")])


def shown(request: ResponseCreate) -> list[dict[str, Any]]:
    return messages([input_item(item, lambda prefix: prefix) for item in request.items])


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_of_earlier_answers_reaches_the_template_from_chat_completions(field: str) -> None:
    request, _ = read_chat({"messages": [USER, {"role": "assistant", "content": "Yes.", field: "Hm."}, USER]})
    assert request.ignored == ()
    assert shown(request)[1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


def test_reasoning_items_are_accepted_back() -> None:
    thought: Item = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
    }
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "1"}
    answer = {"role": "assistant", "content": "Yes."}
    request, _ = read_body({"input": [USER, thought, call, result, thought, answer, USER, thought]})
    assert request.ignored == ()
    assert [(message["role"], message.get("reasoning_content")) for message in shown(request)] == [
        ("user", None), ("assistant", "Hm."), ("tool", None), ("assistant", "Hm."), ("user", None),
    ]  # fmt: skip


def test_reasoning_without_text_has_no_effect_and_is_listed() -> None:
    thought: Item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x", "content": None}
    request, _ = read_body({"input": [thought, USER]})
    assert request.ignored == ("input[reasoning]",)
    assert [message["role"] for message in shown(request)] == ["user"]


@pytest.mark.parametrize(
    ("name", "thinking", "start"),
    [
        ("chatml", False, ""),
        ("qwen3", False, "tagged"),
        ("qwen3", True, "tagged"),
        ("deepseek-r1", False, "tagged"),
        ("deepseek-r1-distill", False, "open"),
        ("qwq", True, "open"),
    ],
)
async def test_the_template_says_where_reasoning_starts(
    model: Model, name: str, thinking: bool, start: ReasoningStart
) -> None:
    options = {"chat_template_kwargs": {"enable_thinking": thinking}}
    context = await builder(model, name).context(read_body({"input": "Hi", **options})[0], None, now=5, user="u")
    assert context.form.reasoning == start
    strict = {"text": {"format": {"type": "json_object"}}, **options}
    context = await builder(model, name).context(read_body({"input": "Hi", **strict})[0], None, now=5, user="u")
    assert context.form.reasoning == ""


def builder(model: Model, name: str) -> PromptBuilder:
    encoder = LocalEncoder(model, compose(TEMPLATES[name]))
    return PromptBuilder(encoder, limit=900, new_id=lambda prefix: prefix)


def turn(context: Context, output: list[Item]) -> Turn:
    return Turn(
        id="resp_1", previous=None, created_at=5, began=context.began, instructions=None,
        items=[*context.items, *output], input=len(context.items), response={"output": output},
    )  # fmt: skip


async def test_the_next_turn_omits_reasoning_as_the_template_does(model: Model) -> None:
    prompts = builder(model, "qwen3")
    first = await prompts.context(read_body({"input": "One?"})[0], None, now=5, user="u")
    thought, said = reasoning_item("Hm.", item_id="rs_1"), text_item("Two.", item_id="msg_1")
    seen = [*first.ids, *model.vocabulary.tokenize("<think>\nHm.\n</think>\n\nTwo.", special=False)]
    following = read_body({"input": "Three?"})[0]
    after = await prompts.context(following, (turn(first, [thought, said]), seen), now=5, user="u")
    assert b"Hm." not in b"".join(map(model.vocabulary.piece, after.ids))
    assert after.known == 0
    plain = await prompts.context(following, (turn(first, [said]), seen), now=5, user="u")
    assert plain.known == len(seen)


async def test_reasoning_stays_in_the_prompt_until_the_call_is_answered(model: Model) -> None:
    prompts = builder(model, "qwen3")
    first = await prompts.context(read_body({"input": "One?"})[0], None, now=5, user="u")
    call = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = read_body({"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]})[0]
    called = turn(first, [reasoning_item("Hm.", item_id="rs_1"), call])
    after = await prompts.context(result, (called, first.ids), now=5, user="u")
    assert after.known == len(first.ids)
