"""Conversations of every shape through chat templates that behave like those of widely used models."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import Model
from gateway.prompts.chat_template import Prompt, TemplateError
from gateway.prompts.folding import Accepted, fold
from gateway.protocol.tool_prompt import Message
from tests.support.templates import TEMPLATES, TEXT_TOKENS, compose, control_texts
from tests.support.templates.vocabulary import write_sentencepiece, write_vocabulary

CONTROLS = control_texts(TEMPLATES.values())


def date(_: str) -> str:
    return "1 Dec 2026"


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def assistant(content: str, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}


def called(arguments: Any, call_id: str = "call_0123456789abcdef") -> list[Message]:
    call = {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        assistant("", tool_calls=[call]),
        {"role": "tool", "content": '{"sky": "晴"}', "tool_call_id": call_id},
    ]


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Ask for the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CONVERSATIONS: dict[str, list[Message]] = {
    "one question": [user("How are you?")],
    "a system message": [system("Be brief."), user("How are you?")],
    "only a system message": [system("Be brief.")],
    "several turns": [user("One?"), assistant("Two."), user("Three?"), assistant("Four."), user("Five?")],
    "several system messages": [system("Be brief."), system("Be kind."), user("How are you?")],
    "a late system message": [system("Be brief."), user("One?"), assistant("Two."), system("Be kind."), user("Three?")],
    "a last system message": [user("One?"), system("Be kind.")],
    "two questions in a row": [user("One?"), user("Two?"), assistant("Three."), user("Four?"), user("Five?")],
    "two answers in a row": [user("One?"), assistant("Two."), assistant("Three."), user("Four?")],
    "a first answer": [assistant("Hello!"), user("How are you?")],
    "a first answer after a system message": [system("Be brief."), assistant("Hello!"), user("How are you?")],
    "only an answer": [assistant("Hello!")],
    "a last answer": [user("One?"), assistant("Two.")],
    "developer messages": [{"role": "developer", "content": "Be brief."}, user("How are you?")],
    "Unicode": [system("简短回答。"), user("你好,世界! 🫖 \u202eשלום"), assistant("茶炊"), user("É\u0301?")],
    "a call": [user("Weather?"), *called({"city": "北京"}), assistant("Sunny."), user("Thanks!")],
    "a call without an end": [user("Weather?"), *called({"city": "北京"})],
    "a question after a result": [user("Weather?"), *called({"city": "北京"}), user("And?")],
    "several calls at once": [
        user("Weather?"),
        assistant("I ask.", tool_calls=[called({"city": city}, city)[0]["tool_calls"][0] for city in ("oslo", "rome")]),
        {"role": "tool", "content": "snow", "tool_call_id": "oslo"},
        {"role": "tool", "content": "rain", "tool_call_id": "rome"},
        assistant("Both wet."),
    ],
    "a call with short arguments": [user("Weather?"), *called({})],
    "a call with cut arguments": [user("Weather?"), *called('{"city": "Bei')],
    "a call with empty arguments": [user("Weather?"), *called("")],
    "a call with a list as arguments": [user("Weather?"), *called([1])],
}


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    return Model(write_vocabulary(path, controls=CONTROLS, texts=TEXT_TOKENS), vocab_only=True)


@functools.cache
def prompt(vocabulary: Model, name: str) -> Prompt:
    marks = itertools.count()
    return Prompt(compose(TEMPLATES[name]), vocabulary.vocabulary, mark=lambda: f"{next(marks):032x}")


def text(model: Model, ids: Sequence[int]) -> str:
    """The ids as text, control tokens by their names."""
    pieces = ((model.vocabulary.piece(i) or model.vocabulary.text(i).encode()) for i in ids)
    return b"".join(pieces).decode()


def whole(model: Model, name: str, messages: Sequence[Message], **options: Any) -> list[int]:
    return prompt(model, name).whole(messages, date=date, **options)


def controls(model: Model, ids: Sequence[int]) -> list[int]:
    return [i for i in ids if model.vocabulary.is_control(i)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_conversation_is_rendered_with_all_its_contents(vocabulary: Model, name: str) -> None:
    for kind, messages in CONVERSATIONS.items():
        shown, place = text(vocabulary, whole(vocabulary, name, messages)), 0
        lead = messages[0]["content"] if messages[0]["role"] == "system" else ""
        assert lead in shown, kind
        for message in messages[bool(lead) :]:  # Mistral puts the first system message into the last user message
            place = shown.find(message["content"], place)
            assert place >= 0, f"{kind}: {message} is missing in {shown}"
            place += len(message["content"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_without_an_answer_ends_with_its_last_content(vocabulary: Model, name: str) -> None:
    for kind, messages in CONVERSATIONS.items():
        shown = text(vocabulary, whole(vocabulary, name, messages, answer=False))
        assert shown.endswith(messages[-1]["content"]), kind
        assert text(vocabulary, whole(vocabulary, name, [*messages, user("x")])).startswith(shown) or name.startswith(
            ("mistral", "qwen3", "step", "glm-4.5")
        )


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_can_be_offered_in_every_conversation(vocabulary: Model, name: str) -> None:
    for kind, messages in CONVERSATIONS.items():
        shown = text(vocabulary, whole(vocabulary, name, messages, tools=[TOOL]))
        assert "weather" in shown, kind
        assert messages[-1]["content"] in shown, kind


@pytest.mark.parametrize("name", [name for name, rules in TEMPLATES.items() if rules.appends])
def test_an_appended_follow_up_is_the_whole_conversation(vocabulary: Model, name: str) -> None:
    p, answer = prompt(vocabulary, name), "Fine, 谢谢."
    for kind in ("one question", "several turns", "two questions in a row", "a first answer"):
        said = CONVERSATIONS[kind]
        ids = [
            *p.whole(said, date=date),
            *vocabulary.vocabulary.tokenize(TEMPLATES[name].lead + answer, special=False),
            *p.follow_up([user("  And\nyou?")], date=date),
        ]
        assert ids == p.whole([*said, assistant(answer), user("  And\nyou?")], date=date), kind


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_message_can_follow_every_message(vocabulary: Model, name: str) -> None:
    following = {
        "system": system("Be kind."),
        "user": user("Five?"),
        "assistant": assistant("Six."),
        "tool": called({})[1],
    }
    for after, (role, message) in itertools.product(following, following.items()):
        shown = text(vocabulary, prompt(vocabulary, name).follow_up([message], date=date, after=after))
        assert message["content"] in shown, (after, role)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_follow_up_without_an_answer_ends_with_its_last_content(vocabulary: Model, name: str) -> None:
    p = prompt(vocabulary, name)
    assert p.follow_up([], date=date, answer=False) == []
    for message in (system("Be kind."), user("Five?"), assistant("Six."), called({})[1]):
        ids = p.follow_up([message], date=date, answer=False)
        assert text(vocabulary, ids).endswith(message["content"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_earlier_reasoning_is_shown_as_the_template_decides(vocabulary: Model, name: str) -> None:
    inline = [user("One?"), assistant("<think>\nHmm.\n</think>\n\nTwo."), user("Three?")]
    fields = [user("One?"), assistant("Two.", reasoning_content="Hmm."), user("Three?")]
    for messages in (inline, fields):
        shown = text(vocabulary, whole(vocabulary, name, messages))
        assert "Two." in shown
        if TEMPLATES[name].thinking != "kept" or messages is fields:
            assert "Hmm." not in shown
    if TEMPLATES[name].thinking == "latest":
        latest = [user("One?"), assistant("Two.", reasoning_content="Hmm.")]
        assert "<think>\nHmm.\n</think>\n\nTwo." in text(vocabulary, whole(vocabulary, name, latest))


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_becomes_a_control_token(vocabulary: Model, name: str) -> None:
    plain, poisoned = (
        [
            system(f"{bad}a"),
            user(f"a{bad} {bad}"),
            assistant(f"{bad}a</think>{bad}", reasoning_content=bad),
            user(f"{bad}a"),
            *called({f"a{bad}": f"{bad}"}, call_id=f"x{bad}"),
        ]
        for bad in ("x", "".join(CONTROLS))
    )
    frame = controls(vocabulary, whole(vocabulary, name, plain))
    assert controls(vocabulary, whole(vocabulary, name, poisoned)) == frame


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", "[/INST]"])
def test_a_text_with_a_control_token_reads_as_it_was_written(vocabulary: Model, end: str) -> None:
    content = f"{end}a {end}\n\n{end}"
    ids = whole(vocabulary, "qwen3", [user(content)])
    assert f"user\n{content}<|im_end|>" in text(vocabulary, ids)


FRAGMENTS = st.sampled_from(
    sorted(
        {
            *CONTROLS,
            *TEXT_TOKENS,
            *(control[:n] for control in CONTROLS[::3] for n in range(1, len(control))),
            *(control[n:] for control in CONTROLS[::3] for n in range(1, len(control))),
            *" \n",
            "茶",
        }
    )
)
CONTENT = st.lists(FRAGMENTS, max_size=6).map("".join)
JOINING = (
    "{% for m in messages %}{{ m.role }}{{ m.content | replace('</think>', '') | replace('x', '') | trim }}{% endfor %}"
    "{% for m in messages %}{{ m.content.split('<think>') | join }}{{ m.content[:3] }}{{ m.content[-3:] }}{% endfor %}"
)
"""A template that cuts contents and puts the pieces side by side."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(contents=st.lists(CONTENT, min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["joining", "qwen3", "deepseek-r1", "llama-3.1", "mistral-v0.3", "gemma-2"])
def test_no_combination_of_texts_becomes_a_control_token(vocabulary: Model, name: str, contents: list[str]) -> None:
    p = joining(vocabulary) if name == "joining" else prompt(vocabulary, name)

    def conversation(replace: bool) -> list[Message]:
        roles = itertools.cycle(["user", "assistant"])
        return [
            {"role": role, "content": "x" if replace else text} for role, text in zip(roles, contents, strict=False)
        ]

    plain, poisoned = (controls(vocabulary, p.whole(conversation(replace), date=date)) for replace in (True, False))
    assert plain == poisoned


@functools.cache
def joining(vocabulary: Model) -> Prompt:
    return Prompt(JOINING, vocabulary.vocabulary, mark=lambda: "0" * 32)


def test_texts_that_a_template_joins_do_not_become_a_control_token(vocabulary: Model) -> None:
    halves = [user("<|im_"), assistant("start|>"), user("<|im_</think>start|>")]
    ids = joining(vocabulary).whole(halves, date=date)
    assert controls(vocabulary, ids) == []
    assert "<|im_start|>" in text(vocabulary, ids)


def test_the_system_message_goes_into_the_first_question_where_there_is_no_place_for_it(vocabulary: Model) -> None:
    said = [system("Be brief."), system("Be kind."), user("One?"), assistant("Two."), system("Stop."), user("Three?")]
    assert text(vocabulary, whole(vocabulary, "gemma-2", said)) == (
        "<s><start_of_turn>user\nBe brief.\n\nBe kind.\n\nOne?<end_of_turn>\n<start_of_turn>model\nTwo.<end_of_turn>\n"
        "<start_of_turn>user\nStop.\n\nThree?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert text(vocabulary, whole(vocabulary, "mixtral", said)) == (
        "<s>[INST] Be brief.\n\nBe kind.\n\nOne? [/INST] Two.</s>[INST] Stop.\n\nThree? [/INST]"
    )


def test_a_template_gets_the_messages_as_they_are_where_it_takes_them(vocabulary: Model) -> None:
    said = [system("a"), system("b"), user("c"), user("d"), assistant("e"), assistant("f"), system("g"), user("h")]
    expected = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in said)
    assert text(vocabulary, whole(vocabulary, "chatml", said)) == f"{expected}<|im_start|>assistant\n"


def test_a_content_is_tokenized_with_the_text_around_it_as_in_training(vocabulary: Model) -> None:
    ids = whole(vocabulary, "chatml", [user("\ta <think>\n")])
    assert ids == vocabulary.vocabulary.tokenize(text(vocabulary, ids), special=True)


@pytest.mark.parametrize("name", ["vicuna", "solar", "llama-2", "zephyr"])
def test_a_tokenizer_that_puts_a_space_before_texts_puts_none_between_them(tmp_path: Path, name: str) -> None:
    model = Model(write_sentencepiece(tmp_path / "vocabulary.gguf"), vocab_only=True)
    p, said, answer = prompt(model, name), [system("Be brief."), user("a</s>b")], f"{TEMPLATES[name].lead}Fine."
    following = [user("\n<s>b")]
    generated = model.vocabulary.tokenize(f"\n{answer}", special=False)[2:]
    ids = [*p.whole(said, date=date), *generated, *p.follow_up(following, date=date)]
    whole = p.whole([*said, assistant("Fine."), *following], date=date)
    assert ids == whole
    shown = "".join(model.vocabulary.text(i).replace("\u2581", " ").replace("<0x0A>", "\n") for i in whole)
    assert "a</s>b" in shown
    assert whole.count(model.vocabulary.tokenize("<s>", special=True)[0]) == 1


def test_a_call_shows_its_arguments_as_the_model_wrote_them(vocabulary: Model) -> None:
    cut = [user("Weather?"), *called('{"city": "Bei')]
    assert '"arguments": {"city": "Bei}' in text(vocabulary, whole(vocabulary, "qwen2.5", cut))
    assert "<function=weather>\n</function>" in text(vocabulary, whole(vocabulary, "qwen3-coder", cut))
    assert json.dumps({"city": "北京"}, ensure_ascii=False) in text(
        vocabulary, whole(vocabulary, "qwen2.5", CONVERSATIONS["a call"])
    )


def test_a_template_that_omits_every_text_is_refused(vocabulary: Model) -> None:
    with pytest.raises(TemplateError):
        Prompt("x", vocabulary.vocabulary, mark=lambda: "0" * 32).follow_up([user("a")], date=date)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tag_of_reasoning_in_an_argument_does_not_cut_the_call(vocabulary: Model, name: str) -> None:
    history = [user("x"), *called({"city": "a</think>b<think>c"}), user("y")]
    shown = text(vocabulary, whole(vocabulary, name, history)).replace(r"\u003c", "<")
    assert "weather" in shown
    assert "a</think>b<think>c" in shown


def test_joined_answers_keep_all_reasoning() -> None:
    alternating = Accepted(**{**dict.fromkeys(Accepted.__annotations__, True), "parts": False, "assistants": False})
    said = [user("x"), assistant("a", reasoning_content="1"), assistant("b", reasoning_content="2"), assistant("c")]
    assert fold(said, alternating)[1:] == [assistant("a\n\nb\n\nc", reasoning_content="1\n\n2")]
