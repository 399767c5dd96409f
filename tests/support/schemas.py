"""Constraints of JSON schemas: what they accept, and what a model writes under them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from engine import Grammar, Sampling
from engine.constraint import Compiler
from engine.sampler import Sampler
from gateway.errors import ApiError
from gateway.prompts.constraints import form
from gateway.protocol.tools import ErrorPaths, FunctionTool, JsonSchema, OutputConstraint, TextFormat


def compiled(schema: Any) -> str:
    """The grammar of an answer that must fit `schema`."""
    grammar = form([], "auto", JsonSchema(name="x", schema=schema), ErrorPaths(format="schema")).grammar
    assert grammar is not None
    return grammar


def tool(parameters: Any, *, strict: bool | None = None) -> OutputConstraint:
    """The constraint of an answer that must call a function with `parameters`."""
    function = FunctionTool(name="f", parameters=parameters, strict=strict)
    return form([function], "required", TextFormat(), ErrorPaths(tool="tools[{}]"))


CALL = '<tool_call>\n{"name": "f", "arguments": %s}\n</tool_call>'


def call(arguments: Any) -> str:
    return CALL % json.dumps(arguments, ensure_ascii=False)


def validate(value: Any, schema: Any) -> None:
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())


def refused(schema: Any) -> str | None:
    with pytest.raises(ApiError) as caught:
        compiled(schema)
    assert caught.value.code == "invalid_request"
    return caught.value.param


def accepts(compiler: Compiler, grammar: str | None, text: str) -> bool:
    """Whether an answer may be `text`, token by token, and end there."""
    assert grammar is not None
    constraint = compiler.constraint(Grammar(grammar))
    for token in compiler.vocabulary.tokenize(text, special=False):
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return any(constraint.allows(int(end)) for end in compiler.ends)


def spoken(compiler: Compiler, grammar: str, seed: int) -> str:
    """An answer of random logits under a grammar, with a preference for closing brackets and for whole characters."""
    vocabulary = compiler.vocabulary
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=seed)
    sampler = Sampler(sampling, constraint=compiler.constraint(Grammar(grammar)))
    random, said = np.random.default_rng(seed), b""
    closing = [vocabulary.tokenize(c, special=False)[0] for c in '"}],']
    digits = [vocabulary.tokenize(c, special=False)[0] for c in "0123456789"]
    for i in range(4000):
        logits = random.standard_normal(vocabulary.size).astype(np.float32)
        logits[closing] += 2 + i / 100
        logits[digits] -= i / 100
        logits[compiler.ends] += 5
        logits[128:256] -= 20  # bytes of multi-byte characters
        token = sampler.draw(logits)
        if vocabulary.ends_generation(token):
            return said.decode()
        said += vocabulary.piece(token)
    raise AssertionError(said.decode(errors="replace"))
