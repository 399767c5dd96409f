"""Answers under a grammar: allowed tokens are found exactly, others are never accepted, and time is bounded."""

from __future__ import annotations

import threading
from itertools import count

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits

from engine import Finished, Generate, Grammar, Model, Sampling, Tokens
from engine.constraint import Compiler, Constraint
from engine.errors import GrammarError, SamplingError
from engine.grammars import Compiled, Grammars
from engine.process import EngineProcess
from engine.sampler import Sampler
from gateway.models.catalogue import EMBEDDED, find

CHOICE = 'start: "茶" /[0-9]{2,4}/ | "coffee"'


def lark(text: str) -> Grammar:
    return Grammar(LLMatcher.grammar_from_lark(text))


def constraint(model: Model, grammar: Grammar) -> Constraint:
    return Compiler(model.vocabulary).constraint(grammar)


def sampler(model: Model, grammar: Grammar, **fields: float) -> Sampler:
    sampling = Sampling(**{"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 1, **fields})  # type: ignore[arg-type]
    return Sampler(sampling, constraint=constraint(model, grammar))


def say(model: Model, drawing: Sampler, *, seed: int = 0, limit: int = 200) -> tuple[str, bool]:
    """What random logits make it say, and whether it came to an end."""
    random = np.random.default_rng(seed)
    said = b""
    for _ in range(limit):
        token = drawing.draw(random.standard_normal(model.vocabulary.size).astype(np.float32) * 4)
        if model.vocabulary.ends_generation(token):
            return said.decode(), True
        said += model.vocabulary.piece(token)
    return said.decode(errors="replace"), False


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 20}], ids=str)
def test_an_answer_follows_its_grammar_and_ends_where_it_does(model: Model, fields: dict[str, float]) -> None:
    for seed in range(20):
        text, ended = say(model, sampler(model, lark(CHOICE), **fields), seed=seed)
        assert ended
        assert text == "coffee" or (text[0] == "茶" and text[1:].isdecimal() and 2 <= len(text[1:]) <= 4)


def test_a_control_token_is_never_taken_for_the_characters_of_its_name(model: Model) -> None:
    grammar = lark('start: ("<|im_start|>" | "x"){3}')
    start = 258
    assert model.vocabulary.text(start) == "<|im_start|>"
    drawing = sampler(model, grammar)
    said = b""
    for _ in range(100):
        logits = np.zeros(model.vocabulary.size, np.float32)
        logits[start], logits[byte_token(model, ord("<"))] = 9, 8
        token = drawing.draw(logits)
        if model.vocabulary.ends_generation(token):
            break
        assert token != start
        said += model.vocabulary.piece(token)
    assert said == b"<|im_start|>" * 3


def byte_token(model: Model, char: int) -> int:
    return model.vocabulary.tokenize(chr(char), special=False)[0]


def test_a_control_token_of_a_grammar_is_written_as_a_token(model: Model) -> None:
    start = 258
    assert model.vocabulary.text(start) == "<|im_start|>"
    state = constraint(model, Grammar(LLMatcher.grammar_from_lark(f'start: "7" <[{start}]>'), (start,)))
    state.accept(byte_token(model, ord("7")))
    assert state.allowed().tolist() == [start]
    assert state.allows(start)
    assert not state.allows(start - 1)


@pytest.mark.parametrize(
    "text",
    ["", "start: (", "top: /a/", "start: other", "start: /(?=a)b/", "start: /[^/"],
)
def test_a_grammar_that_is_invalid_or_too_large_is_refused(model: Model, text: str) -> None:
    with pytest.raises(GrammarError):
        constraint(model, lark(text))


def test_a_grammar_that_takes_too_much_time_is_refused(model: Model) -> None:
    ticks = count(step=10)
    state = Compiler(model.vocabulary, clock=lambda: float(next(ticks))).constraint(lark(CHOICE))
    with pytest.raises(GrammarError, match="too much time"):
        state.allowed()


def test_a_mask_that_exceeds_a_limit_ends_the_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {} for i in range(100)}, "additionalProperties": False}
    grammar = Grammar(LLMatcher.grammar_from_json_schema(schema))
    brace = byte_token(model, ord("{"))
    constraint(model, grammar).accept(brace)
    monkeypatch.setattr("engine.constraint.GRAMMAR_LIMITS", LLParserLimits(max_items_in_row=50, verbose_errors=False))
    with pytest.raises(GrammarError, match="items"):
        constraint(model, grammar).accept(brace)


def test_a_users_grammar_cannot_make_a_model_write_a_control_token(model: Model) -> None:
    state = constraint(model, lark("start: <|im_start|>"))
    assert not any(state.allows(token) for token in range(model.vocabulary.size))
    with pytest.raises(GrammarError, match="no text"):
        state.allowed()


def test_a_grammar_without_an_end_of_its_recursion_is_refused(model: Model) -> None:
    with pytest.raises(GrammarError, match="no text"):
        constraint(model, lark("start: a\na: start")).allowed()


def test_the_mask_has_exactly_the_tokens_that_pass_one_by_one() -> None:
    real = Model(find(EMBEDDED).path, vocab_only=True)
    vocabulary = real.vocabulary
    text = r'start: "{\"" /[^"\\]{1,20}/ "\": " (/[0-9]+/ | "茶" | "茉莉") "}"'
    state = constraint(real, lark(text))
    for part in ['{"', "na", "me 茶", '": ', "茶", "}"]:
        for token in vocabulary.tokenize(part, special=False):
            found = state.allowed()
            assert sorted(found.tolist()) == [i for i in range(vocabulary.size) if state.allows(i)]
            assert token in found
            state.accept(token)
    assert all(vocabulary.ends_generation(int(i)) for i in state.allowed())


def test_a_constraint_is_rebuilt_from_the_tokens_of_an_answer(model: Model) -> None:
    grammar = lark(CHOICE)
    first = sampler(model, grammar, temperature=1.0)
    random = np.random.default_rng(5)
    steps = [random.standard_normal(model.vocabulary.size).astype(np.float32) for _ in range(4)]
    tokens = [first.draw(logits.copy()) for logits in steps]
    second = sampler(model, grammar, temperature=1.0)
    second.replay(tokens[:2])
    assert [second.draw(logits.copy()) for logits in steps[2:]] == tokens[2:]
    with pytest.raises(SamplingError):
        sampler(model, grammar).replay([byte_token(model, ord("x"))])


def test_answers_under_one_compiled_grammar_do_not_affect_each_other(model: Model) -> None:
    compiler = Compiler(model.vocabulary)
    one, other = (compiler.constraint(lark('start: "ab" | "b"')) for _ in range(2))
    one.accept(byte_token(model, ord("a")))
    assert [chr(c) for c in range(33, 127) if one.allows(byte_token(model, c))] == ["b"]
    assert [chr(c) for c in range(33, 127) if other.allows(byte_token(model, c))] == ["a", "b"]


def test_grammars_are_compiled_in_a_thread_and_returned_in_the_loop(model: Model) -> None:
    woken = threading.Event()
    grammars = Grammars(model.vocabulary, wake=woken.set)
    results: list[Compiled] = []
    for grammar in (lark(CHOICE), lark("start: (")):
        grammars.compile(grammar, results.append)
        assert results == []
        while not results:
            assert woken.wait(30)
            woken.clear()
            grammars.run_callbacks()
        result = results.pop()
        assert isinstance(result, Constraint if grammar == lark(CHOICE) else GrammarError)


async def test_an_engine_answers_within_a_grammar_and_lives_on_after_a_bad_one(engine: EngineProcess) -> None:
    async def answer(number: int, grammar: str) -> tuple[bytes, Finished]:
        ids: list[int] = []
        sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=number)
        async for message in engine.generate(Generate(number, [40, 41], 50, sampling, "a", lark(grammar), 2)):
            if isinstance(message, Tokens):
                assert [len(logprob.top) for logprob in message.logprobs] == [2]
                ids += message.ids
            elif isinstance(message, Finished):
                end = message
        return bytes(ids), end

    bad = (await answer(1, "start: other"))[1]
    assert (bad.reason, bad.code) == ("failed", "invalid_request")
    said, end = await answer(2, 'start: "#" "#"')
    assert (len(said), end.reason) == (2, "stop")
