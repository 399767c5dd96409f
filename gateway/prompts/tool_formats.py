"""Detection of the format in which a chat template writes function calls.

A template is rendered with an example call, and the texts around the call's name and arguments are its format. The
format is used only if further examples, rendered and read back, are the calls that they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.errors import ApiError
from gateway.prompts.call_grammar import Function, call_grammar
from gateway.protocol.call_format import ANY_TYPE, CallFormat, Parameters, Tags
from gateway.protocol.calls import AnswerReader, ArgumentsPart, CallStart, TextPart
from gateway.protocol.tool_prompt import Message, Tool, dump

Arguments = dict[str, Any]
Render = Callable[[Sequence[Message], Sequence[Tool]], str]
"""Renders messages and tools. Raises ExampleError."""
Controls = Callable[[str], Sequence[tuple[str, int]]]
"""Returns the control tokens in a text, with their ids."""

NAME: Final = "qzname"
KEYS: Final = ("qzfirst", "qzsecond")
VALUES: Final = ("Qzone", "Qztwo")
CALL_ID: Final = "qz3456789"
"""Nine letters and digits, which Mistral's templates require."""
MAX_OPENING: Final = 200
"""Maximum characters before a function's name. A longer text is not part of the call."""
_TRIGGER: Final = re.compile(r'<[^<>\s]+>|\[[A-Z_]+\]|[\[{\s]*"\w+"')
"""The start of a call that makes it one: a tag, a control token of Mistral, or the first key of a JSON object."""
_TYPES: Final = frozenset(("string", "number", "integer", "boolean", "object", "array"))
_ANSWER: Final = "Zqanswer"
_USER: Final[Message] = {"role": "user", "content": "x"}
_PARAMETERS: Final = {"type": "object", "properties": {key: {"type": "string"} for key in KEYS}, "required": [KEYS[0]]}
TOOL: Final[Tool] = {
    "type": "function",
    "function": {"name": NAME, "description": "Qzdescription", "parameters": _PARAMETERS},
}
_TEXTS: Final[tuple[Arguments, ...]] = (
    {KEYS[0]: 'a "b"\n\\ <c> {茶', KEYS[1]: ""},
    {KEYS[0]: "7", KEYS[1]: "two\n\nlines\n"},
    {},
)
_OTHERS: Final[Arguments] = {"a": 7, "b": True, "c": None, "d": [1, "x"], "e": {"f": "茶", "g": [{}]}, "h": -1.5}


class ExampleError(Exception):
    """The template rejects an example."""


@dataclass(frozen=True)
class ToolSupport:
    """How a template writes function calls, and what it is passed as a call's arguments."""

    calls: CallFormat
    arguments_as_text: bool = False
    """Whether the template expects arguments as JSON text rather than as an object."""

    def shown(self, call: dict[str, Any]) -> dict[str, Any]:
        """Return a call as the template expects it."""
        function = call["function"]
        return {**call, "function": {**function, "arguments": self.arguments(function["arguments"])}}

    def arguments(self, value: Any) -> Any:
        """Return a call's arguments, an object or text that the template accepts, as the template expects them."""
        if not isinstance(value, dict):
            return value
        if self.arguments_as_text:
            return dump(value)
        if self.calls.tags is None:
            return value
        # Templates differ in how they write other values than strings, of which grammar and reader know one form.
        return {key: text if isinstance(text, str) else dump(text) for key, text in value.items()}


def describes_tools(render: Render) -> bool:
    """Return whether the template shows tools to the model."""
    try:
        return NAME in render([_USER], [TOOL])
    except ExampleError:
        return False


def simplified(tools: Sequence[Tool]) -> list[Tool]:
    """Return the tools with at most one type in each schema: some templates recurse endlessly on others."""
    return [_simplified(tool) for tool in tools]


def _simplified(value: Any) -> Any:
    if isinstance(value, list):
        return [_simplified(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    reduced = {key: _simplified(inner) for key, inner in value.items()}
    kinds = reduced.get("type")
    if isinstance(kinds, list):
        kinds = reduced["type"] = next((kind for kind in kinds if kind != "null"), "null")
    is_shown = isinstance(kinds, dict) or kinds in (*_TYPES, "function")
    return {key: inner for key, inner in reduced.items() if key != "type" or is_shown}


def detect(render: Render, controls: Controls) -> ToolSupport | None:
    """Return how the template writes calls; None if it writes none, or in no usable format."""
    if not describes_tools(render):
        return None
    for as_text in (False, True):
        for find in (_json_format, _tagged_format):
            support = _support(_Probe(render, controls, arguments_as_text=as_text), find)
            if support is not None:
                return support
    return None


@dataclass(frozen=True)
class _Probe:
    """Renders example calls."""

    render: Render
    controls: Controls
    arguments_as_text: bool

    def call(self, arguments: Any) -> str:
        """Return the text that the template writes for a call, without what it writes for any answer."""
        tool_call = {"type": "function", "id": CALL_ID, "function": {"name": NAME, "arguments": arguments}}
        plain = self.render([_USER, {"role": "assistant", "content": _ANSWER}], [TOOL])
        called = self.render([_USER, {"role": "assistant", "content": "", "tool_calls": [tool_call]}], [TOOL])
        start = len(_common(plain, called))
        text = called[start:]
        text = text[: len(text) - len(_common(plain[start:][::-1], text[::-1]))]
        for name, _ in self.controls(plain.partition(_ANSWER)[2])[:1]:  # the token that ends an answer
            text = text.partition(name)[0]
        return text.rpartition("</think>")[2].strip()


_Find = Callable[[Callable[[Arguments], str]], CallFormat | None]


def _support(probe: _Probe, find: _Find) -> ToolSupport | None:
    """Return the format that `find` finds in example calls, if calls in it can be produced and read."""
    try:
        calls = find(lambda value: probe.call(dump(value) if probe.arguments_as_text else value))
        if calls is None:
            return None
        texts = [calls.opening, calls.middle, calls.closing, *(calls.call_id or ())]
        calls = replace(calls, controls=tuple(sorted({pair for text in texts for pair in probe.controls(text)})))
        support = ToolSupport(calls, probe.arguments_as_text)
        call_grammar([Function(NAME, "", _PARAMETERS, strict=True)], calls)
        is_usable = all(_is_read_back(probe, support, value) for value in (*_TEXTS, _OTHERS))
    except (ExampleError, ApiError, ValueError):  # ValueError: what is read back is no JSON
        return None
    return support if is_usable else None


def _is_read_back(probe: _Probe, support: ToolSupport, arguments: Arguments) -> bool:
    """Return whether a rendered call is read as what it is."""
    kinds: Parameters = {NAME: {key: () if isinstance(value, str) else ANY_TYPE for key, value in arguments.items()}}
    reader = AnswerReader(support.calls, parameters=kinds)
    parts = [*reader.feed(probe.call(support.arguments(arguments))), *reader.finish()]
    text = "".join(part.text for part in parts if isinstance(part, ArgumentsPart))
    names = [part.name for part in parts if isinstance(part, CallStart)]
    others = [part for part in parts if isinstance(part, TextPart)]
    return names == [NAME] and not others and bool(json.loads(text) == arguments)


def _json_format(call: Callable[[Arguments], str]) -> CallFormat | None:
    """Return the format of calls whose arguments are one JSON object."""
    arguments = dict(zip(KEYS, VALUES, strict=True))
    text = call(arguments)
    place, name = _place(text, arguments), text.find(NAME)
    if place is None or name < 0:
        return None
    start, end = place
    if name < start:
        return _with_id(_format(text[:name], text[name + len(NAME) : start], text[end:]))
    calls = _format(text[:start], text[end:name], text[name + len(NAME) :])
    is_usable = calls is not None and calls.middle and calls.closing and CALL_ID not in calls.closing
    return replace(calls, name_last=True) if calls is not None and is_usable else None


def _place(text: str, arguments: Arguments) -> tuple[int, int] | None:
    """Return where `arguments` start and end as JSON in `text`."""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            value, end = None, 0
        if value == arguments:
            return at, end
        at = text.find("{", at + 1)
    return None


def _with_id(calls: CallFormat | None) -> CallFormat | None:
    """Return the format with the call's id as an optional part, if the closing text contains one."""
    if calls is None or CALL_ID not in calls.closing:
        return calls
    before, _, after = calls.closing.partition(CALL_ID)
    if CALL_ID in after or after[:1] != '"':
        return None
    return replace(calls, call_id=(before, after[:1]), closing=after[1:])


def _tagged_format(call: Callable[[Arguments], str]) -> CallFormat | None:
    """Return the format of calls that write each parameter between tags."""
    text, empty = call(dict(zip(KEYS, VALUES, strict=True))), call({})
    pieces: list[str] = []
    for word in (NAME, KEYS[0], VALUES[0], KEYS[1], VALUES[1]):
        piece, found, text = text.partition(word)
        if not found:
            return None
        pieces.append(piece)
    opening, first, assign, following, again = pieces
    without, found, after = empty.partition(NAME)
    common = _common(following, text)
    stop = common[: common.find(">") + 1]
    if not found or without != opening or assign != again or not (first and assign and stop and after):
        return None
    calls = _format(opening, "", text)
    return None if calls is None else replace(calls, tags=Tags(first, assign, stop, following, after))


def _format(opening: str, middle: str, closing: str) -> CallFormat | None:
    """Return a format, with a trigger that is anchored if it is no tag but something that ordinary text may contain."""
    if not opening or len(opening) > MAX_OPENING or CALL_ID in opening + middle:
        return None
    found = _TRIGGER.match(opening)
    trigger = found[0] if found else opening
    return CallFormat(opening, middle, closing, trigger, anchored=trigger[0] not in "<[" or '"' in trigger)


def _common(one: str, other: str) -> str:
    """Return the common prefix of two texts."""
    length = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return min(one, other, key=len) if length is None else one[:length]
