"""Values of a call's arguments: where a JSON object ends, and text between tags as JSON."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from gateway.protocol.call_format import JsonType, ParameterKind
from gateway.protocol.detokenizer import overlap

_STRUCTURAL: Final = re.compile(r'["\\{}\[\]]')
_PYTHON: Final = {"True": "true", "False": "false", "None": "null"}
"""Values of Python, which models write whose templates render them so."""
_NULLS: Final = ("null", "None")
_TYPES: Final[dict[type[Any], JsonType]] = {
    type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object",
}  # fmt: skip


class JsonEnd:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        """Start before the object."""
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, piece: str) -> int | None:
        """Return the length of the part of `piece` that completes the object; None if the object continues."""
        start = 0
        if self._escaped and piece:
            start, self._escaped = 1, False
        while found := _STRUCTURAL.search(piece, start):
            start = found.end()
            char = found[0]
            if char == "\\":
                self._escaped = self._in_string and start == len(piece)
                start += self._in_string
            elif char == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if char in "{[" else -1
                if self._depth <= 0:
                    return start
        return None


class ValueReader:
    """Converts the text of one parameter up to `stop` to JSON. Strings are converted as they arrive."""

    def __init__(self, kind: ParameterKind, stop: str) -> None:
        """Start before the value."""
        self._kind = kind
        self._is_text = kind == ()
        self._stop = stop
        self._quoted = False
        """Whether a string has been started."""
        self._searched = 0
        """Characters of a value that is not a string in which no `stop` was its end."""
        self.ended = False

    def feed(self, text: str) -> tuple[str, str]:
        """Return the JSON that can no longer change, and the text that must be passed again, before more text.

        After the value's end the second is the text after `stop`.
        """
        if self._kind == ("null",) and self._is_string(text):
            self._is_text = True
        return self._text(text) if self._is_text else self._whole(text)

    def _is_string(self, text: str) -> bool:
        """Return whether `text` starts a value other than null."""
        return not any((null + self._stop).startswith(text) or text.startswith(null + self._stop) for null in _NULLS)

    def _text(self, text: str) -> tuple[str, str]:
        value, found, rest = text.partition(self._stop)
        if not found:
            cut = len(text) - overlap(text, self._stop)
            value, rest = text[:cut], text[cut:]
        opening = "" if self._quoted else '"'
        self._quoted, self.ended = True, bool(found)
        return opening + _dump(value)[1:-1] + ('"' if found else ""), rest

    def _whole(self, text: str) -> tuple[str, str]:
        """Convert a value that is not a string, or whose type its end decides."""
        at = text.find(self._stop, self._searched)
        while at >= 0:
            value = _PYTHON.get(text[:at], text[:at])
            kind = _type(value)
            if self._kind is not None and kind not in self._kind:
                value, kind = _dump(text[:at]), "string"
            if kind is not None:
                self.ended = True
                return value, text[at + len(self._stop) :]
            at = text.find(self._stop, at + 1)  # inside a string
        self._searched = max(0, len(text) - len(self._stop) + 1)
        return "", text


def _type(text: str) -> JsonType | None:
    """Return the type of a value in JSON; None if `text` is no JSON."""
    try:
        return _TYPES[type(msgspec.json.decode(text))]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _dump(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
