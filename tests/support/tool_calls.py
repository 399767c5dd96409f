"""Function calls in a model's own format: prompts, constraints, and what readers find."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np

from engine import Grammar, Model, Sampling
from engine.constraint import Compiler
from engine.sampler import Sampler
from gateway.prompts.chat_template import Prompt
from gateway.prompts.constraints import form
from gateway.protocol.call_format import OWN, CallFormat
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart, Part, TextPart
from gateway.protocol.tool_prompt import Message
from gateway.protocol.tools import ErrorPaths, FunctionTool, OutputConstraint, TextFormat

SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"],
                        "additionalProperties": False}},
    "properties": {
        "城市": {"type": "string", "minLength": 2, "maxLength": 20},
        "unit": {"enum": ["摄氏", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "place": {"$ref": "#/$defs/Place"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "exact": {"type": "boolean"},
    },
    "required": ["城市", "unit", "days", "place", "exact"],
    "additionalProperties": False,
}  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "城市": 'a "b"\n\n\\ </x> {茶', "unit": "摄氏", "days": 3, "note": None, "place": {"x": 1.5}, "tags": ["a", "7"],
    "exact": True,
}  # fmt: skip


def prompt(model: Model, template: str) -> Prompt:
    marks = itertools.count()
    return Prompt(template, model.vocabulary, mark=lambda: f"{next(marks):032x}")


def text(model: Model, ids: list[int]) -> str:
    """The ids as text, control tokens by their names."""
    pieces = ((model.vocabulary.piece(i) or model.vocabulary.text(i).encode()) for i in ids)
    return b"".join(pieces).decode()


def date(_: str) -> str:
    return "1 Dec 2026"


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def called(arguments: Any, name: str = "get_weather") -> Message:
    call = {"type": "function", "id": "call_" + "a" * 32, "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def tool(schema: dict[str, Any], name: str = "get_weather") -> FunctionTool:
    return FunctionTool(name=name, description="天气", parameters=schema, strict=True)


def wanted(calls: CallFormat, *tools: FunctionTool, choice: Any = "required", answer: Any = None) -> OutputConstraint:
    return form(tools, choice, answer or TextFormat(), ErrorPaths(), calls)


def grammar(constraint: OutputConstraint) -> Grammar:
    return Grammar(constraint.grammar or "", constraint.controls)


def read(constraint: OutputConstraint, answer: str, cuts: list[int] | None = None) -> list[Part]:
    """What a reader finds in an answer that comes in pieces; neighbours of one kind as one."""
    reader = AnswerReader(constraint.calls or OWN, whole=constraint.whole, parameters=constraint.parameters)
    found: list[Part] = []
    for start, end in itertools.pairwise([0, *sorted(cuts or []), max(len(answer), *(cuts or [0]))]):
        found += reader.feed(answer[start:end])
    whole: list[Part] = []
    for part in [*found, *reader.finish()]:
        if whole and isinstance(part, TextPart | ArgumentsPart) and type(whole[-1]) is type(part):
            whole[-1] = type(part)(whole[-1].text + part.text)
        else:
            whole.append(part)
    return whole


def arguments_of(parts: list[Part]) -> Any:
    start, arguments = parts
    assert isinstance(start, CallStart)
    assert isinstance(arguments, ArgumentsPart)
    return json.loads(arguments.text)


def spoken(model: Model, constraint: OutputConstraint, seed: int) -> str:
    """An answer of random logits, in which texts end after a while."""
    vocabulary, compiler, calls = model.vocabulary, Compiler(model.vocabulary), constraint.calls
    sampler = Sampler(
        Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=seed), constraint=compiler.constraint(grammar(constraint))
    )
    random, said = np.random.default_rng(seed), ""
    stop = calls.tags.stop if calls is not None and calls.tags is not None else '"'
    closing = [vocabulary.tokenize(char, special=False)[0] for char in '"}],']
    for i in range(1500):
        logits = random.standard_normal(vocabulary.size).astype(np.float32)
        logits[closing] += 2 + i / 100
        logits[compiler.ends] += 5
        logits[128:256] -= 20  # bytes of multi-byte characters
        done = max(n for n in range(len(stop)) if said.endswith(stop[:n]))
        if done or random.random() < 0.2:
            logits[vocabulary.tokenize(stop[done], special=False)] += 9
        token = sampler.draw(logits)
        if vocabulary.ends_generation(token):
            return said.encode("latin-1").decode()
        piece = vocabulary.text(token) if token in constraint.controls else vocabulary.piece(token).decode("latin-1")
        said += piece
    raise AssertionError(said)


def follows(model: Model, constraint: OutputConstraint, answer: str) -> bool:
    """Whether a constraint lets a model write `answer`, and end there."""
    compiler = Compiler(model.vocabulary)
    state = compiler.constraint(grammar(constraint))
    for token in model.vocabulary.tokenize(answer, special=True):
        if not state.allows(token):
            return False
        state.accept(token)
    return any(state.allows(int(end)) for end in compiler.ends)
