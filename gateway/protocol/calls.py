"""Incremental parser that separates an answer into reasoning, text for the user and function calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from gateway.protocol.call_format import ANY_TYPE, CHANNELS, OWN, CallFormat, Parameters, Tags
from gateway.protocol.call_values import JsonEnd, ValueReader
from gateway.protocol.detokenizer import overlap
from gateway.protocol.reasoning import CHANNEL, CLOSE, END, MESSAGE, OPEN, START, ReasoningStart
from gateway.protocol.tool_prompt import NAME

_NAME: Final = re.compile(NAME)
_RECIPIENT: Final = re.compile(rf"\bto=functions\.({NAME})")
_HEADERS: Final = (CHANNEL, START, "to=")
"""Beginnings of a message's header, after the text with which the prompt or the message before ends."""
_State = Callable[[], "list[Part]"]
"""Reads held text, and may go over to another state."""
_FENCED: Final = re.compile(r"\s*```(?:json)?\s*(\{.*\})\s*```\s*", re.DOTALL)
_FENCES: Final = ('```json{"name":"', '```{"name":"')
"""Beginnings of calls in a code fence, without white space."""
_NO_TAGS: Final = Tags("", "", "", "", "")


class _Fenced(msgspec.Struct, forbid_unknown_fields=True):
    """A call in a code fence."""

    name: str
    arguments: msgspec.Raw

    def __post_init__(self) -> None:
        if not bytes(self.arguments).lstrip().startswith(b"{"):
            raise ValueError("arguments are an object")


@dataclass(frozen=True)
class TextPart:
    """More text for the user."""

    text: str


@dataclass(frozen=True)
class ReasoningPart:
    """More of the model's reasoning."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The start of a call of the function `name`."""

    name: str


@dataclass(frozen=True)
class ArgumentsPart:
    """More of the call's arguments, which are JSON in every format."""

    text: str


Part = TextPart | ReasoningPart | CallStart | ArgumentsPart


class AnswerReader:
    """Separates the parts of an answer. Pass each piece of it to `feed`.

    White space at the beginning of reasoning, and of the answer after it, is dropped.
    """

    def __init__(
        self,
        calls: CallFormat | None = OWN,
        *,
        whole: bool = False,
        parameters: Parameters | None = None,
        reasoning: ReasoningStart = "",
        fenced: Collection[str] = (),
    ) -> None:
        """Start before an answer whose calls have the format `calls`; None if it has none.

        With `whole` a grammar constrains the whole answer, which is then a call as soon as it starts like one.
        `parameters` are the kinds of parameters that are written between tags; others are of any type. `reasoning` is
        where reasoning starts. An answer that is a code fence with a call in JSON, and nothing else, is a call if it
        calls one of the functions `fenced`.
        """
        self._calls = calls or OWN
        self._unfenced = self._plain if calls is None else self._beginning if calls.anchored else self._text
        self._fenced = frozenset(fenced)
        self._answer = self._fence if fenced else self._unfenced
        """The state that reads an answer after its reasoning."""
        self._whole = whole
        self._parameters = parameters or {}
        self._held = ""
        self._name = ""
        self._end = JsonEnd()
        self._scanned = 0
        """Length of the held text in which the arguments do not end."""
        self._arguments = ""
        self._tags = self._calls.tags or _NO_TAGS
        self._value = ValueReader((), "")
        self._separator = "{"
        self._channel = ""
        """The channel of the current message; empty for an answer without channels."""
        self._final = self._message if calls is None or self._calls.trigger == CHANNELS.trigger else self._answer
        """The state that reads the message for the user."""
        self._can_call = calls is not None
        starts: dict[ReasoningStart, _State] = {
            "": self._answer, "tagged": self._start, "open": self._before_thought, "channels": self._message_header,
        }  # fmt: skip
        self._feed = starts[reasoning]

    def feed(self, text: str) -> list[Part]:
        """Return the parts that can no longer change now that `text` has arrived."""
        self._held += text
        parts: list[Part] = []
        while True:
            state = self._feed
            parts += state()
            if self._feed == state:
                return parts

    def finish(self) -> list[Part]:
        """Return the text still held at the end of the answer.

        The part of a call's header or of its closing text is not text: the answer was cut off within it.
        """
        held, self._held = self._held, ""
        if not held or self._whole:
            return []
        if self._feed == self._thought:
            return [ReasoningPart(held)]
        if self._feed == self._message:
            return [self._message_part(held)]
        if self._feed in (self._fence, self._hold):
            return self._fenced_call(held)
        return [TextPart(held)] if self._feed in (self._start, self._text, self._beginning) else []

    def _start(self) -> list[Part]:
        """Read the beginning of an answer that may begin with a tag of reasoning."""
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._held, self._feed = start.removeprefix(OPEN), self._before_thought
        elif not OPEN.startswith(start):
            self._feed = self._answer
        return []

    def _before_thought(self) -> list[Part]:
        return self._skip_space(self._thought)

    def _thought(self) -> list[Part]:
        before, found, after = self._held.partition(CLOSE)
        if not found:
            return [ReasoningPart(text)] if (text := self._before(CLOSE)) else []
        self._held, self._feed = after, self._before_answer
        return [ReasoningPart(before)] if before else []

    def _message_header(self) -> list[Part]:
        """Read the header of a message in a channel. An answer that does not begin with one has no channels."""
        header, found, after = self._held.partition(MESSAGE)
        if not found:
            start = self._held.lstrip()
            if not any(start.startswith(text[: len(start)]) for text in _HEADERS):
                self._feed = self._answer
            return []
        self._held, self._channel = after, next(iter(header.rpartition(CHANNEL)[2].split()), "")
        recipient = _RECIPIENT.search(header)
        if recipient is not None and self._can_call:
            self._feed = self._json
            return [CallStart(recipient[1])]
        self._feed = self._final if self._channel == "final" else self._message
        return []

    def _message(self) -> list[Part]:
        """Read a message in a channel."""
        before, found, after = self._held.partition(END)
        if found:
            self._held, self._feed = after, self._message_header
        else:
            before = self._before(END)
        return [self._message_part(before)] if before else []

    def _message_part(self, text: str) -> Part:
        return ReasoningPart(text) if self._channel == "analysis" else TextPart(text)

    def _before_answer(self) -> list[Part]:
        return self._skip_space(self._answer)

    def _skip_space(self, following: _State) -> list[Part]:
        self._held = self._held.lstrip()
        if self._held:
            self._feed = following
        return []

    def _fence(self) -> list[Part]:
        """Hold an answer as long as it may be a call in a code fence."""
        start = "".join(self._held.split())
        if any(start.startswith(fence) for fence in _FENCES):
            self._feed = self._hold
        elif not any(fence.startswith(start) for fence in _FENCES):
            self._feed = self._unfenced
        return []

    def _hold(self) -> list[Part]:
        return []

    def _fenced_call(self, text: str) -> list[Part]:
        """Return a whole answer as a call if it is one in a code fence, otherwise as text."""
        found = _FENCED.fullmatch(text)
        with suppress(msgspec.DecodeError, RecursionError):
            call = msgspec.json.decode(found[1], type=_Fenced) if found is not None else None
            if call is not None and call.name in self._fenced:
                return [CallStart(call.name), ArgumentsPart(bytes(call.arguments).decode())]
        return [TextPart(text)]

    def _beginning(self) -> list[Part]:
        """Read the beginning of an answer that is a call only if it begins with the trigger."""
        start = self._held.lstrip()
        trigger = self._calls.trigger
        if start.startswith(trigger):
            self._held, self._feed = start[len(trigger) :], self._header
        elif not trigger.startswith(start):
            self._feed = self._plain
        return []

    def _plain(self) -> list[Part]:
        text, self._held = self._held, ""
        return [TextPart(text)] if text else []

    def _text(self) -> list[Part]:
        trigger = self._calls.trigger
        before, found, after = self._held.partition(trigger)
        if found:
            self._held, self._feed = after, self._header
            return [TextPart(before)] if before else []
        return [TextPart(text)] if (text := self._before(trigger)) else []

    def _header(self) -> list[Part]:
        """Read the text between the trigger and the arguments."""
        calls = self._calls
        if calls.name_last and self._held.startswith(calls.rest):
            self._held, self._feed = self._held[len(calls.rest) :], self._early_json
            return []
        found = _NAME.match(self._held, len(calls.rest)) if self._held.startswith(calls.rest) else None
        after = self._held[found.end() :] if found else ""
        for text, state in self._after_name():
            if found and after.startswith(text):
                self._name, self._held, self._feed = found[0], after[len(text) :], state
                return [CallStart(found[0])]
        possible = calls.rest.startswith(self._held) or (
            found is not None and any(text.startswith(after) for text, _ in self._after_name())
        )
        if not possible:
            self._feed = self._plain if calls.anchored else self._text
            return [TextPart(calls.trigger)]
        return []

    def _after_name(self) -> list[tuple[str, _State]]:
        """Return the texts that may follow a function's name, and the states after them."""
        if self._calls.tags is None:
            return [(self._calls.middle, self._json)]
        return [(self._tags.first, self._key), (self._tags.empty, self._no_arguments)]

    def _json(self) -> list[Part]:
        """Read arguments that are one JSON object."""
        length = self._end.find(self._held)
        text = self._held if length is None else self._held[:length]
        self._held = ""
        if length is not None:
            self._feed = self._over
        return [ArgumentsPart(text)] if text else []

    def _early_json(self) -> list[Part]:
        """Hold arguments that stand before the name, which the first event of a call must state."""
        length = self._end.find(self._held[self._scanned :])
        if length is None:
            self._scanned = len(self._held)
        else:
            end = self._scanned + length
            self._arguments, self._held, self._feed = self._held[:end], self._held[end:], self._late_name
        return []

    def _late_name(self) -> list[Part]:
        """Read the name after the arguments."""
        found = _NAME.match(self._held, len(self._calls.middle))
        if found is None or found.end() == len(self._held):
            return []
        self._feed = self._over
        return [CallStart(found[0]), ArgumentsPart(self._arguments)]

    def _no_arguments(self) -> list[Part]:
        self._feed = self._over
        return [ArgumentsPart("{}")]

    def _key(self) -> list[Part]:
        """Read the name of a parameter."""
        tags = self._tags
        key, found, after = self._held.partition(tags.assign)
        if not found:
            return []
        kind = self._parameters.get(self._name, {}).get(key, ANY_TYPE)
        self._value = ValueReader(kind, tags.stop)
        self._held, self._feed = after, self._parameter
        text = f"{self._separator}{json.dumps(key, ensure_ascii=False)}: "
        self._separator = ", "
        return [ArgumentsPart(text)]

    def _parameter(self) -> list[Part]:
        """Read the value of a parameter."""
        text, self._held = self._value.feed(self._held)
        if self._value.ended:
            self._feed = self._after_value
        return [ArgumentsPart(text)] if text else []

    def _after_value(self) -> list[Part]:
        """Read the rest of the text between a value and the next parameter's name, or after the last value."""
        tags = self._tags
        following = tags.following.removeprefix(tags.stop)
        if self._held.startswith(following):
            self._held, self._feed = self._held[len(following) :], self._key
            return []
        if following.startswith(self._held):
            return []
        self._feed = self._over
        return [ArgumentsPart("}")]

    def _over(self) -> list[Part]:
        self._held = ""  # one call per answer; the grammar allows nothing after it
        return []

    def _before(self, stop: str) -> str:
        """Return the held text without its end that may be the start of `stop`, and hold only that end."""
        cut = len(self._held) - overlap(self._held, stop)
        text, self._held = self._held[:cut], self._held[cut:]
        return text
