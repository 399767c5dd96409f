"""Answers in free text that a call may end and reasoning may begin: one grammar covers them from the first token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import Grammar, Model
from engine.constraint import Compiler, Constraint
from gateway.prompts.constraints import form
from gateway.protocol.call_format import CallFormat
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart, Part, TextPart
from gateway.protocol.reasoning import ReasoningStart
from gateway.protocol.tools import ErrorPaths, FunctionTool, TextFormat

GO = CallFormat("<go>", "7", "", "<go>")


@pytest.fixture(scope="module")
def compiler(model: Model) -> Compiler:
    return Compiler(model.vocabulary)


def started(compiler: Compiler, calls: CallFormat, reasoning: ReasoningStart = "") -> Constraint:
    constraint = form([FunctionTool(name="f")], "auto", TextFormat(), ErrorPaths(), calls, reasoning)
    assert not constraint.whole
    return compiler.constraint(Grammar(constraint.grammar or "", constraint.controls))


def following(compiler: Compiler, state: Constraint, said: str) -> str:
    """Those of "f", "x" and "." that may follow an answer, and "$" if it may end."""
    for token in compiler.vocabulary.tokenize(said, special=False):
        assert state.allows(token), (said, token)
        state.accept(token)
    chars = [char for char in "fx." if state.allows(compiler.vocabulary.tokenize(char, special=False)[0])]
    return "".join(chars) + "$" * state.allows(int(compiler.ends[0]))


@pytest.mark.parametrize(
    ("anchored", "reasoning", "said", "expected"),
    [
        (False, "", "9<g", "fx.$"),
        (False, "", "9<g<go>", "f"),
        (False, "", "<think><go>", "f"),
        (False, "tagged", "<think>a <go>", "fx.$"),
        (False, "tagged", " <think>a <go>b</think>\n<go>", "f"),
        (False, "tagged", "<th<go>", "f"),
        (False, "open", "a <go>", "fx.$"),
        (False, "open", "<go></thi</think> <go>", "f"),
        (True, "", "<go>", "f"),
        (True, "", "\n <go>", "f"),
        (True, "", "a<go>", "fx.$"),
        (True, "", "<g <go>", "fx.$"),
        (True, "tagged", "<think>a</think> <go>", "f"),
        (True, "tagged", "<think>a</think> b<go>", "fx.$"),
        (True, "open", "<go>", "fx.$"),
    ],
)
def test_a_trigger_outside_of_reasoning_must_begin_a_call(
    compiler: Compiler, anchored: bool, reasoning: ReasoningStart, said: str, expected: str
) -> None:
    calls = replace(GO, anchored=anchored)
    assert following(compiler, started(compiler, calls, reasoning), said) == expected


def test_a_token_that_ends_the_trigger_begins_the_call(compiler: Compiler) -> None:
    state = started(compiler, CallFormat("< ttrue", "7", "", "< "))
    start, space_t = compiler.vocabulary.tokenize("<", special=False)[0], 256
    state.accept(start)
    assert state.allows(space_t)  # " t", of which "t" belongs to the call
    state = started(compiler, CallFormat("< ", "7", "", "< "))
    state.accept(start)
    assert not state.allows(space_t)


def test_a_control_token_as_trigger_cannot_be_written_as_text(compiler: Compiler) -> None:
    name, token = "<|im_start|>", 258
    assert compiler.vocabulary.text(token) == name
    calls = CallFormat(name, "7", "", name, controls=((name, token),))
    state = started(compiler, calls)
    assert following(compiler, state, "a<|im_start|") == "fx.$"
    assert not state.allows(compiler.vocabulary.tokenize(">", special=False)[0])
    state.accept(token)
    assert following(compiler, state, "") == "f"


FENCED = '```json\n{\n  "name": "f",\n  "arguments": {"a": "x"}\n}\n```'


def read(answer: str, step: int) -> list[Part]:
    tools = [FunctionTool(name="f"), FunctionTool(name="exact", parameters={}, strict=True)]
    reader = AnswerReader(fenced=form(tools, "auto", TextFormat(), ErrorPaths()).fenced)
    parts = [part for at in range(0, len(answer), step) for part in reader.feed(answer[at : at + step])]
    return [*parts, *reader.finish()]


@pytest.mark.parametrize("step", [1, 7, 100])
def test_a_call_in_a_code_fence_that_is_the_whole_answer_is_a_call(step: int) -> None:
    for answer in (FENCED, FENCED.replace("json", ""), f"\n{FENCED}\n"):
        assert read(answer, step) == [CallStart("f"), ArgumentsPart('{"a": "x"}')]
    for answer in (
        f"{FENCED}\nThis calls f.", f"So:\n{FENCED}", FENCED[:-3], FENCED.replace('"f"', '"g"'), "```json\n{",
        FENCED.replace('"f"', '"exact"'), FENCED.replace('{"a": "x"}', "[1]"), FENCED.replace('"x"', "x"),
        FENCED.replace('"f",', '"f", "id": 1,'), "```python\nf()\n```", "Hi",
    ):  # fmt: skip
        parts = read(answer, step)
        assert all(isinstance(part, TextPart) for part in parts), parts
        assert "".join(part.text for part in parts if isinstance(part, TextPart)) == answer
