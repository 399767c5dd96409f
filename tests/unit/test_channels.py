"""Answers in channels, the format of gpt-oss: split into reasoning, text and calls, and enforced by grammars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import Grammar, Model
from engine.constraint import Compiler
from gateway.prompts.abilities import trial
from gateway.prompts.chat_template import Prompt
from gateway.prompts.constraints import form
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart, ReasoningPart, TextPart
from gateway.protocol.tools import AnyFormat, ErrorPaths, FunctionTool, JsonSchema, OutputConstraint, TextFormat
from tests.support.templates import TEMPLATES, compose
from tests.support.templates.vocabulary import write_vocabulary
from tests.support.tool_calls import prompt
from tests.support.tool_templates import HARMONY, HARMONY_CONTROLS

SCHEMA: dict[str, Any] = {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
TOOL = FunctionTool(name="weather", parameters=SCHEMA, strict=True)
THOUGHT = "<|channel|>analysis<|message|>Hm <b> 茶.<|end|><|start|>assistant"
REMARK = "<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
CALL = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}'
EARLY = ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}'
OWN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A vocabulary with the control tokens of gpt-oss."""
    path = Path(tmp_path_factory.mktemp("channels")) / "gpt.gguf"
    return Model(write_vocabulary(path, controls=["<s>", "</s>", *HARMONY_CONTROLS]), vocab_only=True)


def constraint(
    made: Prompt, *tools: FunctionTool, choice: Any = "auto", answer: AnyFormat | None = None
) -> OutputConstraint:
    start = made.reasoning(thinking=False)
    return form(tools, choice, answer or TextFormat(), ErrorPaths(), made.calls, start, made.markers)


def follows(model: Model, found: OutputConstraint, answer: str) -> bool:
    """Whether the grammar allows the whole answer and an end after it."""
    state = Compiler(model.vocabulary).constraint(Grammar(found.grammar or "", found.controls))
    for token in model.vocabulary.tokenize(answer, special=True):
        if not state.allows(token) or token not in state.allowed():
            return False
        state.accept(token)
    return state.allows(model.vocabulary.tokenize("<|return|>", special=True)[0])


def read(found: OutputConstraint, answer: str, step: int) -> tuple[str, str, str, str]:
    """The reasoning, text, called function and arguments of an answer."""
    reader = AnswerReader(found.calls, whole=found.whole, reasoning=found.reasoning, fenced=found.fenced)
    parts = [part for at in range(0, len(answer), step) for part in reader.feed(answer[at : at + step])]
    parts += reader.finish()
    kinds = (ReasoningPart, TextPart, CallStart, ArgumentsPart)
    texts = ["".join(part.name if isinstance(part, CallStart) else part.text for part in parts if type(part) is kind)
             for kind in kinds]  # fmt: skip
    return texts[0], texts[1], texts[2], texts[3]


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("tools", [(), (TOOL,)], ids=["without tools", "with tools"])
@pytest.mark.parametrize("template", [HARMONY, compose(TEMPLATES["gpt-oss"])], ids=["with calls", "without calls"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"{THOUGHT}{FINAL}Yes. <|", ("Hm <b> 茶.", "Yes. <|", "", "")),
        (f"{FINAL}Yes.", ("", "Yes.", "", "")),
        (f"{THOUGHT}{REMARK}{FINAL}Yes.", ("Hm <b> 茶.", "One moment.Yes.", "", "")),
        ("<|channel|>analysis<|message|>Hm", ("Hm", "", "", "")),
        (THOUGHT + "<|chan", ("Hm <b> 茶.", "", "", "")),
        ("Just text.", ("", "Just text.", "", "")),
        ("<|channel|> <|message|>Odd.", ("", "Odd.", "", "")),
    ],
)
def test_an_answer_is_split_into_its_channels(
    gpt: Model, template: str, tools: tuple[FunctionTool, ...], step: int, answer: str, expected: tuple[str, ...]
) -> None:
    assert read(constraint(prompt(gpt, template), *tools), answer, step) == expected


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize("answer", [CALL, EARLY])
def test_a_message_to_a_function_is_a_call(gpt: Model, answer: str, step: int) -> None:
    found = constraint(prompt(gpt, HARMONY), TOOL)
    assert read(found, THOUGHT + answer, step) == ("Hm <b> 茶.", "", "weather", '{"city": "Rome"}')


def test_a_template_without_calls_gets_them_as_text_in_the_final_channel(gpt: Model) -> None:
    made = prompt(gpt, compose(TEMPLATES["gpt-oss"]))
    assert (made.describes_tools, trial(made).calls) == (False, "")
    found = constraint(made, TOOL)
    assert follows(gpt, found, f"{THOUGHT}{FINAL}{OWN}")
    assert read(found, f"{THOUGHT}{FINAL}{OWN}", 3) == ("Hm <b> 茶.", "", "weather", '{"city": "Rome"}')
    forced = constraint(made, TOOL, choice="required")
    assert follows(gpt, forced, f"{THOUGHT}{FINAL}{OWN}")
    assert not follows(gpt, forced, f"{THOUGHT}{FINAL}Yes.")


def test_a_template_with_calls_claims_tools(gpt: Model) -> None:
    made = prompt(gpt, HARMONY)
    assert made.describes_tools
    assert trial(made).calls == "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}"


@pytest.mark.parametrize("before", ["", THOUGHT, THOUGHT + REMARK])
def test_free_text_has_channels_and_a_call_has_valid_arguments(gpt: Model, before: str) -> None:
    found = constraint(prompt(gpt, HARMONY), TOOL)
    assert follows(gpt, found, f"{before}{FINAL}Yes.")
    assert follows(gpt, found, f"{before}{CALL}")
    assert not follows(gpt, found, f"{before}{CALL.replace('Rome', 'x').replace('city', 'town')}")
    assert not follows(gpt, found, f"{before}{CALL.replace('weather', 'other')}")


def test_a_forced_call_may_follow_reasoning_and_cannot_be_avoided(gpt: Model) -> None:
    found = constraint(prompt(gpt, HARMONY), TOOL, choice="required")
    assert follows(gpt, found, THOUGHT + CALL)
    assert follows(gpt, found, CALL)
    assert not follows(gpt, found, f"{THOUGHT}{FINAL}Yes.")
    assert not follows(gpt, found, THOUGHT)


def test_a_json_answer_is_the_final_message(gpt: Model) -> None:
    made = prompt(gpt, HARMONY)
    for tools in ((), (TOOL,)):
        found = constraint(made, *tools, answer=JsonSchema(name="a", schema=SCHEMA))
        answer = f'{THOUGHT}{FINAL}{{"city": "Rome"}}'
        assert follows(gpt, found, answer)
        assert read(found, answer, 2) == ("Hm <b> 茶.", '{"city": "Rome"}', "", "")
        assert not follows(gpt, found, f"{FINAL}Yes.")
        assert follows(gpt, found, CALL) == bool(tools)


@pytest.mark.parametrize("text", HARMONY_CONTROLS)
def test_a_user_cannot_write_the_tokens_of_channels(gpt: Model, text: str) -> None:
    made = prompt(gpt, HARMONY)
    (marker,) = gpt.vocabulary.tokenize(text, special=True)

    def count(content: str) -> int:
        return made.whole([{"role": "user", "content": content}], date=lambda _: "").count(marker)

    assert count(f"a{text}b") == count("ab")
