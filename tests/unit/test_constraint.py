"""Answers under a grammar: what fits is found exactly, what does not is never accepted, and time is bounded."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from engine import Finished, Generate, Grammar, Model, Sampling, Tokens
from engine.constraint import SLICE, Grammars
from engine.errors import GrammarError
from engine.llama import GrammarState
from engine.process import EngineProcess
from engine.sampler import Sampler
from gateway.models.catalogue import EMBEDDED, find

CHOICE = 'root ::= "茶" [0-9]{2,4} | "coffee"'


def sampler(model: Model, grammar: Grammar, **fields: float) -> Sampler:
    sampling = Sampling(**{"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 1, **fields})  # type: ignore[arg-type]
    return Sampler(sampling, constraint=Grammars(model.vocabulary).constraint(grammar))


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
        text, ended = say(model, sampler(model, Grammar(CHOICE), **fields), seed=seed)
        assert ended
        assert text == "coffee" or (text[0] == "茶" and text[1:].isdecimal() and 2 <= len(text[1:]) <= 4)


def test_a_control_token_is_never_taken_for_the_characters_of_its_name(model: Model) -> None:
    grammar = Grammar('root ::= ("<|im_start|>" | "x"){3}')
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


def test_a_trigger_lets_all_pass_until_it_has_come(model: Model) -> None:
    drawing = sampler(model, Grammar('root ::= "7"', trigger="<go>"))
    for char in b"9<g<go>":  # the byte-level vocabulary says each as one token
        logits = np.zeros(model.vocabulary.size, np.float32)
        logits[byte_token(model, char)] = 1
        assert drawing.draw(logits) == byte_token(model, char)
    assert say(model, drawing) == ("7", True)


def byte_token(model: Model, char: int) -> int:
    return model.vocabulary.tokenize(chr(char), special=False)[0]


def test_what_comes_with_the_triggers_last_token_counts_as_said(model: Model) -> None:
    state = Grammars(model.vocabulary).constraint(Grammar('root ::= "to" "p"', trigger="< "))
    assert state is not None
    state.accept(byte_token(model, ord("<")))
    state.accept(256)  # " t", of which "t" is the grammar's already
    assert [chr(c) for c in range(33, 127) if state.allows(byte_token(model, c))] == ["o"]


def test_after_a_trigger_the_model_may_still_go_its_own_way(model: Model) -> None:
    state = Grammars(model.vocabulary).constraint(Grammar('root ::= "7"', trigger="< "))
    assert state is not None
    state.accept(byte_token(model, ord("<")))
    state.accept(256)
    assert state.allows(byte_token(model, ord("x")))


@pytest.mark.parametrize(
    "text", ["", "root ::= (", "top ::= [a]", "root ::= root", 'root ::= "a"{3000}', "root ::= other"]
)
def test_a_grammar_that_cannot_be_is_refused(model: Model, text: str) -> None:
    with pytest.raises(GrammarError):
        Grammars(model.vocabulary).constraint(Grammar(text))


def test_a_grammar_that_exceeds_its_time_budget_is_abandoned(model: Model) -> None:
    ticks = count(step=10)
    constraint = Grammars(model.vocabulary, clock=lambda: float(next(ticks))).constraint(Grammar(CHOICE))
    assert constraint is not None
    with pytest.raises(GrammarError, match="too much time"):
        constraint.candidates(np.zeros(model.vocabulary.size, np.float32), 1)


def test_looking_at_first_bytes_finds_just_what_the_grammar_itself_finds() -> None:
    real = Model(find(EMBEDDED).path, vocab_only=True)
    vocabulary, text = real.vocabulary, r'root ::= "{\"" [^"\\]{1,20} "\": " ([0-9]+ | "茶" | "茉莉") "}"'
    state, constraint = GrammarState(vocabulary, text), Grammars(vocabulary).constraint(Grammar(text))
    assert constraint is not None
    every = np.arange(vocabulary.size)
    meaningful = np.array([bool(vocabulary.piece(i)) or vocabulary.ends_generation(i) for i in every.tolist()])
    assert vocabulary.size > SLICE
    for part in ['{"', "na", "me 茶", '": ', "茶", "}"]:
        for token in vocabulary.tokenize(part, special=False):
            found = constraint.candidates(np.zeros(vocabulary.size, np.float32), 0)
            assert sorted(found.tolist()) == np.flatnonzero(state.fits(every) & meaningful).tolist()
            assert token in found
            state.accept(token)
            constraint.accept(token)
    assert all(
        vocabulary.ends_generation(int(i)) for i in constraint.candidates(np.zeros(vocabulary.size, np.float32), 0)
    )


async def test_an_engine_answers_within_a_grammar_and_lives_on_after_a_bad_one(engine: EngineProcess) -> None:
    async def answer(number: int, grammar: str) -> tuple[bytes, Finished]:
        ids: list[int] = []
        sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=number)
        async for message in engine.generate(Generate(number, [40, 41], 50, sampling, "a", Grammar(grammar), 2)):
            if isinstance(message, Tokens):
                assert [len(logprob.top) for logprob in message.logprobs] == [2]
                ids += message.ids
            elif isinstance(message, Finished):
                end = message
        return bytes(ids), end

    bad = (await answer(1, "root ::= root"))[1]
    assert (bad.reason, bad.code) == ("failed", "invalid_request")
    said, end = await answer(2, 'root ::= "#" "#"')
    assert (len(said), end.reason) == (2, "stop")
