"""Output constraints of requests: grammars for llguidance, checked before the response is created.

A strict schema is enforced exactly or refused. The parameters of a tool without `strict` never refuse a request: what
cannot be enforced is left out and listed.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from engine import GRAMMAR_LIMITS, GRAMMAR_STACK
from gateway.errors import InvalidRequestError
from gateway.prompts.call_grammar import Function, Value, call_grammar, literal
from gateway.prompts.schemas import Schema, blamed, closed, has_control_characters, inexact, normalized, place, without
from gateway.protocol.call_format import OWN, CallFormat
from gateway.protocol.tools import (
    AnyFormat,
    ErrorPaths,
    FunctionTool,
    GrammarFormat,
    JsonSchema,
    OutputConstraint,
    TextFormat,
    ToolChoice,
    callable_tools,
    requires_call,
)

SECONDS: Final = 1.0
"""Maximum CPU seconds for all schemas of a request."""
SECONDS_PER_SCHEMA: Final = 0.5
"""Maximum CPU seconds for one schema; llguidance needs minutes for some large ones."""
MAX_REPAIRS: Final = 8
"""Maximum keywords that are left out of one schema before any JSON object is accepted."""
WHITESPACE: Final = r"[ ]?|\n[ \t]{0,20}"
"""Whitespace between JSON tokens: enough for indented JSON, and not endless, as small models write it."""
ESCAPES: Final = r"nrbtf\""
"""Escapes in strings. `\u0061` would write a declared property's name in a way that llguidance takes for undeclared."""
ANY_OBJECT: Final[Schema] = {"type": "object"}
NO_PARAMETERS: Final[Schema] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a function without one."""
_WRONG_WARNING: Final = "min/maxProperties"
"""Start of a warning after which llguidance 1.9.1 does not ignore the keyword, but requires an additional property."""
_NO_TOKENIZER: Final = "no tokenizer"
"""Start of the warning that control tokens cannot be checked, which only the engine can."""
_LENIENT: Final[dict[str, Any]] = {"lenient": True, "coerce_one_of": True}

T = TypeVar("T")


@dataclass(frozen=True)
class _Part:
    """A schema of a request."""

    name: str
    """Name of its rule in the grammar."""
    path: str
    """Its path in the request."""
    schema: Schema
    strict: bool
    ignored: tuple[str, ...] = ()
    """Paths of keywords that are not enforced."""
    lark: str | None = None
    """A grammar that replaces the schema."""
    fallback: Schema = field(default_factory=lambda: ANY_OBJECT)
    """What replaces a schema that cannot be enforced."""

    @property
    def rule(self) -> dict[str, Any]:
        """The schema as a grammar with a name."""
        if self.lark is not None:
            return {"name": self.name, "lark_grammar": self.lark}
        options: dict[str, Any] = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES}
        if has_control_characters(self.schema):
            options["json_allowed_escapes"] += "u"
        if not self.strict:
            options |= _LENIENT
        return {"name": self.name, "json_schema": {**closed(self.schema), "x-guidance": options}}

    def reduced(self) -> _Part:
        """Return the part with any JSON instead of its schema, or with any object if only objects are valid."""
        return self if self.schema == self.fallback else replace(self, schema=self.fallback, ignored=(self.path,))


@dataclass(frozen=True)
class _Verdict:
    """llguidance's opinion of a grammar."""

    error: str = ""
    warnings: tuple[str, ...] = ()


class _RulesError(Exception):
    """The rules around the schemas cannot be compiled, such as those of bounded texts between tags."""


_TOO_SLOW: Final = _Verdict("the schema takes too long to compile")


class _Checker:
    """Compiles the grammars of one request within SECONDS, which include the preparation of the grammars."""

    def __init__(self) -> None:
        self._end = time.process_time() + SECONDS

    def check(self, grammar: str) -> _Verdict:
        """Compile `grammar` without an engine."""
        return (
            _bounded(lambda: _compiled(grammar), min(self._end - time.process_time(), SECONDS_PER_SCHEMA)) or _TOO_SLOW
        )


def _bounded(work: Callable[[], T], seconds: float) -> T | None:
    """Return the result of `work`, or None if it takes more than `seconds` of CPU time."""
    results: list[T] = []
    end = time.process_time() + seconds
    default = threading.stack_size(GRAMMAR_STACK)
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    if seconds > 0:
        thread.start()
    threading.stack_size(default)
    while thread.is_alive() and time.process_time() < end:
        thread.join(0.02)
    # A thread that is still alive ends with the worker, which exits after a slow job.
    return results[0] if results else None


def form(
    tools: Sequence[FunctionTool],
    choice: ToolChoice,
    text: AnyFormat,
    error_paths: ErrorPaths,
    calls: CallFormat = OWN,
) -> OutputConstraint:
    """Return the constraint on the answer, with function calls in the format `calls`. Raises InvalidRequestError."""
    functions = callable_tools(tools, choice)
    described = [_function(tool, error_paths.tool.format(tools.index(tool))) for tool in functions]
    try:
        return _form(described, choice, text, error_paths, calls)
    except _RulesError as error:
        reduced = [function if function.strict else _any_object(function.name, function.path) for function in described]
        if reduced == described:
            raise _refusal(described[0].path, str(error)) from error
    try:
        return _form(reduced, choice, text, error_paths, calls)
    except _RulesError as error:
        path = next((function.path for function in reduced if function.strict), reduced[0].path)
        raise _refusal(path, str(error)) from error


def _form(
    functions: Sequence[Function], choice: ToolChoice, text: AnyFormat, error_paths: ErrorPaths, calls: CallFormat
) -> OutputConstraint:
    """Return the constraint on the answer. Raises InvalidRequestError or _RulesError."""
    grammar = call_grammar(functions, calls)
    parts = [_part(value) for value in grammar.values]
    json_only = not isinstance(text, TextFormat)
    if json_only:
        parts.append(_answer(text, error_paths.format))
    if not functions and not parts:
        return OutputConstraint()
    trigger = "" if json_only or requires_call(choice) or not functions else calls.trigger
    starts = [] if trigger or not functions else [f"{literal(calls.trigger, calls.controls)} call"]
    if trigger:
        starts.append("call")
    elif json_only and not (functions and requires_call(choice)):
        starts.append("@answer")
    rules = [f"start: {' | '.join(starts)}", *grammar.rules]
    parts = _enforceable(rules, parts)
    ignored = (
        *(path for function in functions for path in function.ignored),
        *grammar.ignored,
        *(path for part in parts for path in part.ignored),
    )
    return OutputConstraint(
        _grammar(rules, parts), trigger, calls if functions else None, grammar.parameters, ignored=ignored
    )


def _function(tool: FunctionTool, path: str) -> Function:
    parameters = NO_PARAMETERS if tool.parameters is None else tool.parameters
    kinds = parameters.get("type") or "object"
    if kinds == "object" or (isinstance(kinds, list) and "object" in kinds):
        schema: Schema = {**parameters, "type": "object"}
        if tool.strict:
            _require_exact(schema, path)
        return Function(tool.name, path, normalized(schema), strict=tool.strict is True)
    if tool.strict:
        raise InvalidRequestError(f"{path}.type: it must be `object`", param=f"{path}.type")
    return _any_object(tool.name, path)


def _any_object(name: str, path: str) -> Function:
    return Function(name, path, ANY_OBJECT, strict=False, ignored=(path,))


def _part(value: Value) -> _Part:
    fallback = ANY_OBJECT if value.is_object else {}
    return _Part(value.rule, value.path, value.schema, value.strict, fallback=fallback)


def _answer(text: AnyFormat, path: str) -> _Part:
    if isinstance(text, GrammarFormat):
        if isinstance(text.definition, dict):
            return _schema("answer", text.path, text.definition, strict=True)
        return _Part("answer", text.path, {}, strict=True, lark=_lark(text))
    schema = text.schema if isinstance(text, JsonSchema) else ANY_OBJECT
    return _schema("answer", path, schema, strict=True)


def _schema(name: str, path: str, schema: Schema, *, strict: bool) -> _Part:
    """Return the part for `schema`. Raises InvalidRequestError if it is strict and cannot be enforced exactly."""
    if strict:
        _require_exact(schema, path)
    return _Part(name, path, normalized(schema), strict)


def _require_exact(schema: Schema, path: str) -> None:
    """Raise InvalidRequestError if a strict schema cannot be enforced exactly."""
    for place_, reason in inexact(schema):
        raise _refusal(path + place_, reason)


def _lark(text: GrammarFormat) -> str:
    """Return the grammar in llguidance's syntax. Raises InvalidRequestError that names the line."""
    if isinstance(text.definition, list):
        return f"start: {' | '.join(map(literal, text.definition))}"
    definition = str(text.definition)
    if text.syntax == "regex":
        return str(json.loads(LLMatcher.grammar_from_regex(definition))["grammars"][0]["lark_grammar"])
    converted = _bounded(lambda: _converted(definition), SECONDS_PER_SCHEMA)
    if isinstance(converted, str):
        return converted
    problem = "it takes too long to convert" if converted is None else _with_line(str(converted), definition)
    raise InvalidRequestError(f"{text.path}: {problem}", param=text.path)


def _converted(definition: str) -> str | Exception:
    try:
        return any_to_lark(definition)
    except RecursionError:
        return ValueError("it is nested too deeply")
    except Exception as error:  # noqa: BLE001 - the converter raises Exception
        return error


def _with_line(message: str, definition: str) -> str:
    """Return a message of the converter with the line that it is about."""
    name = re.search(r"'([^']+)'", message)
    if "line " in message or name is None:
        return message
    lines = (i for i, line in enumerate(definition.splitlines(), 1) if name[1] in line)
    return f"{message} in line {next(lines, 1)}"


def _enforceable(rules: Sequence[str], parts: Sequence[_Part]) -> list[_Part]:
    """Return the parts with schemas that the engine can enforce together. Raises InvalidRequestError or _RulesError."""
    checker = _Checker()
    verdict = checker.check(_grammar(rules, parts))
    if not verdict.error and not verdict.warnings:
        return list(parts)
    alone = [replace(part, schema={}, lark=None, strict=False) for part in parts]
    if verdict.error and (error := checker.check(_grammar(rules, alone)).error):
        raise _RulesError(error)
    if len(parts) == 1:
        return [_repaired(parts[0], checker, verdict)]
    parts = [_repaired(part, checker) for part in parts]
    verdict = checker.check(_grammar(rules, parts))
    if verdict.error:
        parts = [part if part.strict else part.reduced() for part in parts]
    strict = next((part.path for part in parts if part.strict), None)
    if verdict.error and strict is not None:
        verdict = checker.check(_grammar(rules, parts))
        if verdict.error:
            raise _refusal(strict, verdict.error)
    return parts


def _repaired(part: _Part, checker: _Checker, verdict: _Verdict | None = None) -> _Part:
    """Return the part with an enforceable schema. Raises InvalidRequestError if a strict schema is not enforceable.

    `verdict` is that of the unchanged part, if known.
    """
    for _ in range(MAX_REPAIRS):
        verdict = verdict or checker.check(_alone(part))
        problems = [
            (keyword, part.path + place(part.schema, keyword, message))
            for message in (verdict.error, *verdict.warnings)
            for keyword in blamed(message, part.schema)
        ]
        if part.strict and verdict.error:
            raise _refusal(problems[0][1] if problems else part.path, verdict.error)
        part = replace(part, ignored=tuple(dict.fromkeys((*part.ignored, *(path for _, path in problems)))))
        if not verdict.error:
            return part
        if not problems:
            break
        part = replace(part, schema=_without_faulty(part, problems[0][0], checker))
        verdict = None
    return part.reduced()


def _without_faulty(part: _Part, keyword: str, checker: _Checker) -> Schema:
    """Return the schema without `keyword` where its value is faulty by itself, or everywhere if it never is."""
    shared: Schema = {name: part.schema[name] for name in ("$defs", "definitions") if name in part.schema}

    @functools.cache
    def is_faulty(value: str) -> bool:
        return bool(checker.check(_alone(replace(part, schema={**shared, keyword: json.loads(value)}))).error)

    reduced = without(part.schema, keyword, lambda subschema: is_faulty(json.dumps(subschema[keyword])))
    return reduced if reduced != part.schema else without(part.schema, keyword, lambda _: True)


def _alone(part: _Part) -> str:
    return _grammar([f"start: @{part.name}"], [part])


def _grammar(rules: Sequence[str], parts: Sequence[_Part]) -> str:
    start: dict[str, Any] = {"lark_grammar": "\n".join(rules)}
    return json.dumps({"grammars": [start, *(part.rule for part in parts)]}, ensure_ascii=False)


def _compiled(grammar: str) -> _Verdict:
    try:
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=GRAMMAR_LIMITS)
        messages = [message for message in messages if not message.startswith(_NO_TOKENIZER)]
        wrong = [message for message in messages if message.startswith(_WRONG_WARNING)]
        failed, messages = (True, wrong) if wrong else (failed, messages)
    except BaseException as error:  # noqa: BLE001 - a panic in Rust is no Exception
        return _Verdict(f"the schema cannot be compiled ({type(error).__name__})")
    return _Verdict(_line(messages[0])) if failed else _Verdict(warnings=tuple(messages))


def _refusal(path: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: it cannot be enforced; change it or leave it out: {reason}", param=path)


def _line(message: str) -> str:
    """Return the part of llguidance's message that says what is wrong, in one line."""
    return " ".join(message.split())[:300]
