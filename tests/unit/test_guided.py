"""Grammars, regular expressions and choices, in the fields of llama-server and vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from engine import Grammar, Model
from engine.constraint import Compiler
from gateway.errors import ApiError
from gateway.prompts.constraints import form
from gateway.protocol.chat import read_chat
from gateway.protocol.tools import OutputConstraint

GBNF = 'root ::= item ("," item)*\nitem ::= [a-z]+ # a word\n'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def compiler(model: Model) -> Compiler:
    return Compiler(model.vocabulary)


def wanted(**fields: Any) -> OutputConstraint:
    request, _ = read_chat({"messages": [{"role": "user", "content": "x"}], **fields})
    return form(request.functions, request.choice, request.format, request.error_paths)


def accepts(compiler: Compiler, constraint: OutputConstraint, text: str) -> bool:
    state = compiler.constraint(Grammar(constraint.grammar or ""))
    for token in compiler.vocabulary.tokenize(text, special=False):
        if not state.allows(token):
            return False
        state.accept(token)
    return any(state.allows(int(end)) for end in compiler.ends)


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({"grammar": GBNF}, "ab,c", "ab,"),
        ({"guided_grammar": GBNF}, "x", "X"),
        ({"guided_grammar": 'start: "a" /[0-9]+/'}, "a12", "b12"),
        ({"guided_regex": "[0-9]{2}/[a-z]"}, "12/a", "1/a"),
        ({"guided_choice": ['yes "1"', "no"]}, 'yes "1"', "maybe"),
        ({"guided_json": SCHEMA}, '{"a": 1}', "{}"),
        ({"guided_json": '{"type": "integer"}'}, "5", '"5"'),
        ({"structured_outputs": {"regex": "a+"}}, "aa", "b"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "b", "c"),
        ({"structured_outputs": {"grammar": GBNF}}, "a,b", ",b"),
        ({"structured_outputs": {"json": SCHEMA}}, '{"a": 1}', '{"a": "x"}'),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, '{"a": 1}', "{}"),
        ({"response_format": {"type": "json_object"}}, '{"b": 1}', "[]"),
    ],
    ids=str,
)
def test_the_answer_has_the_form_that_was_asked_for(
    compiler: Compiler, fields: dict[str, Any], right: str, wrong: str
) -> None:
    constraint = wanted(**fields)
    assert accepts(compiler, constraint, right)
    assert not accepts(compiler, constraint, wrong)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"grammar": 'root ::= item\nitem :: "a"\n'}, "grammar", "line 2"),
        ({"grammar": "root ::= item\n"}, "grammar", "line 1"),
        ({"guided_grammar": 'start: "a"\nstart: ('}, "guided_grammar", "2"),
        ({"guided_regex": "(?=a)"}, "guided_regex", "look-ahead"),
        ({"guided_json": "{"}, "guided_json", "not valid JSON"),
        ({"guided_json": {"not": {}}}, "guided_json.not", "not"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice", "exclude"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex", "regex"),
    ],
    ids=str,
)
def test_a_form_that_is_invalid_is_refused_with_its_field_and_line(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        wanted(**fields)
    assert (caught.value.code, caught.value.param) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested too deeply"),
        (
            "".join(f'r{i} ::= "a" r{i + 1} | "b"\n' for i in range(2500)) + 'r2500 ::= "c"\nroot ::= r0',
            "too long to convert",
        ),
    ],
    ids=["deep", "many rules"],
)
def test_a_grammar_that_is_too_large_is_refused(grammar: str, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        wanted(grammar=grammar)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "grammar")
