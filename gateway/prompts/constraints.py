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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from engine import GRAMMAR_LIMITS, GRAMMAR_STACK
from gateway.errors import InvalidRequestError
from gateway.prompts.call_grammar import ANY_OBJECT, Function, Part, call_grammar, literal
from gateway.prompts.schemas import Schema, blamed, endless, inexact, normalized, places, without
from gateway.protocol.call_format import CHANNELS, OWN, CallFormat
from gateway.protocol.reasoning import CHANNEL, CLOSE, END, MARKERS, MESSAGE, OPEN, START, ReasoningStart
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
MAX_NAMED: Final = 20
"""Maximum keywords and reasons that a refusal names."""
NO_PARAMETERS: Final[Schema] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a function without one."""
_WRONG_WARNING: Final = "min/maxProperties"
"""Start of a warning after which llguidance 1.9.1 does not ignore the keyword, but requires an additional property."""
_NO_TOKENIZER: Final = "no tokenizer"
"""Start of the warning that control tokens cannot be checked, which only the engine can."""

T = TypeVar("T")
Problem = tuple[str, str]
"""The path of what cannot be enforced, and the reason."""


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
    reasoning: ReasoningStart = "",
    markers: Sequence[tuple[str, int]] = (),
) -> OutputConstraint:
    """Return the constraint on the answer, with function calls in the format `calls`. Raises InvalidRequestError.

    `reasoning` is where the reasoning of an answer starts that may be free text. `markers` are the control tokens
    around messages in channels, with their ids.
    """
    functions = [_function(tool, error_paths.tool.format(tools.index(tool))) for tool in callable_tools(tools, choice)]
    reduced = [function if function.strict else _any_object(function.name, function.path) for function in functions]
    must_call = bool(functions) and requires_call(choice)
    answer = None if isinstance(text, TextFormat) else _answer(text, error_paths.format)
    failure = ""
    for some in [functions, reduced] if reduced != functions else [functions]:
        try:
            return replace(_form(some, answer, calls, reasoning, markers, must_call=must_call), markers=tuple(markers))
        except _RulesError as error:
            failure = str(error)
    path = next((function.path for function in reduced if function.strict), reduced[0].path)
    raise _refusal([(path, failure)])


def _form(
    functions: Sequence[Function],
    answer: Part | None,
    calls: CallFormat,
    reasoning: ReasoningStart,
    markers: Sequence[tuple[str, int]],
    *,
    must_call: bool,
) -> OutputConstraint:
    """Return the constraint on the answer. Raises InvalidRequestError or _RulesError."""
    if not functions and answer is None:
        return OutputConstraint(reasoning=reasoning)
    grammar = call_grammar(functions, calls)
    is_free = answer is None and not must_call
    if reasoning == "channels":
        final = "free" if is_free else "@answer" if answer is not None else ""
        rules = _channels(calls, markers, final if not must_call else "", can_call=bool(functions))
    elif is_free:
        rules = _free_text(calls, reasoning)
    else:
        call = [f"{literal(calls.trigger, calls.controls)} call"] if functions else []
        rules = [f"start: {' | '.join([*call, *(['@answer'] if answer is not None and not must_call else [])])}"]
    rules += ["ANY: /(?s:.*)/", *grammar.rules]
    parts = _enforceable(rules, [*grammar.parts, *([] if answer is None else [answer])])
    ignored = [path for function in functions for path in function.ignored] + grammar.ignored
    return OutputConstraint(
        _grammar(rules, parts),
        whole=not is_free,
        calls=calls if functions else None,
        parameters=grammar.parameters,
        fenced=tuple(function.name for function in functions if is_free and not function.strict),
        ignored=(*ignored, *(path for part in parts for path in part.ignored)),
        reasoning=reasoning if is_free or reasoning == "channels" else "",
    )


def _free_text(calls: CallFormat, reasoning: ReasoningStart) -> list[str]:
    """Return the rules of free text, which reasoning may begin and a call may end.

    Text outside of reasoning contains no trigger and does not begin with a tag of reasoning. So every answer has one
    reading, the one of the gateway.
    """
    trigger, opening, closing = (json.dumps(text) for text in (calls.trigger, OPEN, CLOSE))
    control = literal(calls.trigger, calls.controls)
    without_tag = f" & ~(SPACE {opening} ANY)" if reasoning == "tagged" else ""
    begins = opening if reasoning == "tagged" else ""
    free = "PLAIN? | HEAD call" if control == trigger else f"PLAIN? ({control} call)?"
    starts = {"": "free", "open": "THOUGHT? | THOUGHTS free", "tagged": "THOUGHT | THOUGHTS free | free"}
    return [
        f"start: {starts[reasoning]}",
        f"free: {free}",
        r"SPACE: /\s*/",
        f"PLAIN: ANY & ~({'SPACE' if calls.anchored else 'ANY'} {trigger} ANY){without_tag}",
        f"HEAD: {'SPACE' if calls.anchored else 'PLAIN'} {trigger}",
        f"THOUGHT: {f'SPACE {begins}' if begins else ''} (ANY & ~(ANY {closing} ANY))",
        f"THOUGHTS: THOUGHT {closing}",
    ]


def _channels(calls: CallFormat, markers: Sequence[tuple[str, int]], final: str, *, can_call: bool) -> list[str]:
    """Return the rules of messages in channels: reasoning and remarks before the message `final` or a call."""
    # What the lexer must tell apart is one terminal, since each terminal matches as much as it can.
    thought, remark, last = (
        literal(f"{CHANNEL}{name}{MESSAGE}", markers) for name in ("analysis", "commentary", "final")
    )
    trigger, end = literal(calls.trigger, calls.controls), literal(END, markers)
    message = f"message: MESSAGE? {end}" if any(name == END for name, _ in markers) else "message: SAID"
    is_native = calls.trigger == CHANNELS.trigger
    ends = [f"{last} {final}"] if final else []
    if can_call and (is_native or final != "free"):
        ends.append(f"{trigger} call" if is_native else f"{last} {trigger} call")
    found = " | ".join(json.dumps(marker) for marker in MARKERS)
    more = f"({thought} | {remark}) message {literal(f'{START}assistant', markers)} start"
    rules = [
        f"start: {' | '.join([more, *ends])}",
        message,
        f"MESSAGE: ANY & ~(ANY ({found}) ANY)",
        f"SAID: MESSAGE {json.dumps(END)}",
    ]
    if final != "free":
        return rules
    return [*rules, "free: MESSAGE?"] if is_native else [*rules, *_free_text(calls, "")[1:]]


def _function(tool: FunctionTool, path: str) -> Function:
    parameters = NO_PARAMETERS if tool.parameters is None else tool.parameters
    kinds = parameters.get("type") or "object"
    if kinds == "object" or (isinstance(kinds, list) and "object" in kinds):
        return Function(tool.name, path, normalized({**parameters, "type": "object"}), strict=tool.strict is True)
    if tool.strict:
        raise InvalidRequestError(f"{path}.type: it must be `object`", param=f"{path}.type")
    return _any_object(tool.name, path)


def _any_object(name: str, path: str) -> Function:
    return Function(name, path, ANY_OBJECT, strict=False, ignored=(path,))


def _answer(text: AnyFormat, path: str) -> Part:
    """Return the part of an answer that is no call. Raises InvalidRequestError."""
    schema = text.schema if isinstance(text, JsonSchema) else ANY_OBJECT
    if isinstance(text, GrammarFormat):
        if not isinstance(text.definition, dict):
            return Part("answer", text.path, {}, strict=True, lark=_lark(text))
        path, schema = text.path, text.definition
    return Part("answer", path, normalized(schema), strict=True)


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


def _enforceable(rules: Sequence[str], parts: Sequence[Part]) -> list[Part]:
    """Return the parts with schemas that the engine can enforce together. Raises InvalidRequestError or _RulesError."""
    checker = _Checker()
    verdict = checker.check(_grammar(rules, parts))
    if not verdict.error and not verdict.warnings and not any(_known(part) for part in parts):
        return list(parts)
    alone = [replace(part, schema={}, lark=None, strict=False) for part in parts]
    if verdict.error and (error := checker.check(_grammar(rules, alone)).error):
        raise _RulesError(error)
    repaired = [_repaired(part, checker, verdict if len(parts) == 1 else None) for part in parts]
    parts = [part for part, _ in repaired]
    if problems := [problem for part, found in repaired if part.strict for problem in found]:
        raise _refusal(problems)
    if len(parts) == 1 or not checker.check(_grammar(rules, parts)).error:
        return parts
    parts = [part if part.strict else part.reduced() for part in parts]
    strict = next((part.path for part in parts if part.strict), None)
    if strict is not None and (error := checker.check(_grammar(rules, parts)).error):
        raise _refusal([(strict, error)])
    return parts


def _known(part: Part) -> list[Problem]:
    """Return what llguidance does not find: references without an end and, for a strict part, what is inexact."""
    found = [*endless(part.schema), *(inexact(part.schema) if part.strict else ())]
    return [(part.path + path, reason) for path, reason in found]


def _repaired(part: Part, checker: _Checker, verdict: _Verdict | None) -> tuple[Part, list[Problem]]:
    """Return the part with a schema that can be enforced, and what was left out of it.

    `verdict` is that of the unchanged part, if known.
    """
    found = _known(part)
    if found and not part.strict:
        return part.reduced(), found
    for _ in range(MAX_REPAIRS):
        verdict = verdict or checker.check(_alone(part))
        problems = list(_problems(part, verdict))
        part = replace(part, ignored=tuple(dict.fromkeys((*part.ignored, *(path for _, path, _ in problems)))))
        if not verdict.error:
            return part, found
        found += [(path, reason) for _, path, reason in problems] or [(part.path, verdict.error)]
        if not problems:
            break
        for keyword in dict.fromkeys(keyword for keyword, _, _ in problems):
            part = replace(part, schema=_without_faulty(part, keyword, checker))
        verdict = None
    return part.reduced(), found


def _problems(part: Part, verdict: _Verdict) -> Iterator[tuple[str, str, str]]:
    """Yield the keywords that llguidance does not enforce, with their paths and the reasons."""
    for message in (verdict.error, *verdict.warnings):
        for keyword in blamed(message, part.schema):
            for path in places(part.schema, keyword, message):
                yield keyword, part.path + path, message


def _without_faulty(part: Part, keyword: str, checker: _Checker) -> Schema:
    """Return the schema without `keyword` where its value is faulty by itself, or everywhere if it never is."""
    shared: Schema = {name: part.schema[name] for name in ("$defs", "definitions") if name in part.schema}

    @functools.cache
    def is_faulty(value: str) -> bool:
        return bool(checker.check(_alone(replace(part, schema={**shared, keyword: json.loads(value)}))).error)

    reduced = without(part.schema, keyword, lambda subschema: is_faulty(json.dumps(subschema[keyword])))
    return reduced if reduced != part.schema else without(part.schema, keyword, lambda _: True)


def _alone(part: Part) -> str:
    return _grammar([f"start: @{part.name}"], [part])


def _grammar(rules: Sequence[str], parts: Sequence[Part]) -> str:
    start: dict[str, Any] = {"lark_grammar": "\n".join(rules)}
    return json.dumps({"grammars": [start, *(part.grammar for part in parts)]}, ensure_ascii=False)


def _compiled(grammar: str) -> _Verdict:
    try:
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=GRAMMAR_LIMITS)
        messages = [message for message in messages if not message.startswith(_NO_TOKENIZER)]
        wrong = [message for message in messages if message.startswith(_WRONG_WARNING)]
        failed, messages = (True, wrong) if wrong else (failed, messages)
    except BaseException as error:  # noqa: BLE001 - a panic in Rust is no Exception
        return _Verdict(f"the schema cannot be compiled ({type(error).__name__})")
    return _Verdict(_line(messages[0])) if failed else _Verdict(warnings=tuple(messages))


def _refusal(problems: Sequence[Problem]) -> InvalidRequestError:
    """Return the error that names everything that cannot be enforced."""
    paths, reasons = (list(dict.fromkeys(values)) for values in zip(*problems, strict=True))
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    what, those = ("it", "it") if len(paths) == 1 else ("they", "them")
    advice = f"{what} cannot be enforced; change {those} or leave {those} out: {'; '.join(reasons[:MAX_NAMED])}"
    return InvalidRequestError(f"{', '.join(paths[:MAX_NAMED])}{more}: {advice}", param=paths[0])


def _line(message: str) -> str:
    """Return the part of llguidance's message that says what is wrong, in one line."""
    return " ".join(message.split())[:300]
