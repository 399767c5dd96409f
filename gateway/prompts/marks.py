"""External text in a rendered prompt, kept apart from the template's own text.

Contents, tools and arguments pass a template as they are, so that it can look into them, trim and split them; only the
characters that a control token could be made of are replaced, each by a private character of Unicode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

LITERAL: Final = 64
"""Most characters of a text that a template searches for in contents; longer ones are texts that it writes."""
PRIVATE: Final = 0x10F000
"""First of the private characters that stand for others while a template renders."""


@dataclass(frozen=True)
class Span:
    """A piece of a rendered prompt: the template's text and contents, or text that cannot become a control token."""

    text: str
    external: bool


class ControlTexts:
    """Finds the texts of a vocabulary's control tokens, and makes them unrecognizable while a template renders.

    `literals` are the strings in the template's code, which it may search for in contents: those that have no
    character in common with a control token at either end stay readable.
    """

    def __init__(self, texts: Collection[str], literals: Iterable[str] = ()) -> None:
        """Prepare the search."""
        dangerous = sorted({char for text in texts for char in _marking(text)})[: 0x110000 - PRIVATE]
        private = dict.fromkeys(range(PRIVATE, 0x110000), "\ufffd")
        self._hidden = {**private, **{ord(char): chr(PRIVATE + i) for i, char in enumerate(dangerous)}}
        self._shown = {PRIVATE + i: char for i, char in enumerate(dangerous)}
        self._control = re.compile(f"(?=({_any_of(texts)}))") if texts else None
        readable = [text for text in _apart(literals, texts) if any(char in text for char in dangerous)]
        hidden = [text.translate(self._hidden) for text in readable]
        self._readable = re.compile(_any_of(hidden)) if hidden else None

    def protect(self, text: str) -> str:
        """Return `text` with private characters where it could become a control token, after any cut and join.

        Private characters of the text itself become U+FFFD.
        """
        text = text.translate(self._hidden)
        return text if self._readable is None else self._readable.sub(lambda match: self.reveal(match[0]), text)

    def protect_all(self, value: Any) -> Any:
        """Return `value` with each text protected, keys of objects too."""
        if isinstance(value, dict):
            return {self.protect(key): self.protect_all(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.protect_all(inner) for inner in value]
        return self.protect(value) if isinstance(value, str) else value

    def dump(self, value: Any, *, indent: int | None, separators: tuple[str, str] | None, sort_keys: bool) -> str:
        """Return `value`, whose texts are protected, as protected JSON."""
        dumped = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.protect(self.reveal(dumped))

    def reveal(self, text: str) -> str:
        """Return `text` with the original characters."""
        return text.translate(self._shown)

    def spans(self, rendered: str) -> Iterator[Span]:
        """Split rendered text, so that no span has a control token to which an external character belongs."""
        text, done = self.reveal(rendered), 0
        if text != rendered and self._control is not None:
            for match in self._control.finditer(text):
                start, end = match.span(1)
                if text[start:end] != rendered[start:end] and start >= done:
                    yield from _span(text[done:start], external=False)
                    yield Span(text[start], external=True)
                    done = start + 1
        yield from _span(text[done:], external=False)


def _span(text: str, *, external: bool) -> Iterator[Span]:
    if text:
        yield Span(text, external)


def _marking(text: str) -> list[str]:
    """Return the characters of a control token's text that content must not pass on: all but words and space.

    JSON escapes quotes and backslashes, so that they cannot be replaced. A text of words only has its first character.
    """
    return [char for char in text if not re.match(r'[\w\s"\\]', char)] or [text[0]]


def _apart(literals: Iterable[str], controls: Collection[str]) -> list[str]:
    """Return those of `literals` that can be no part of a control token, together with any text around them."""
    starts = {control[:n] for control in controls for n in range(1, len(control) + 1)}
    ends = {control[-n:] for control in controls for n in range(1, len(control) + 1)}
    joined = "\0".join(controls)

    def is_apart(text: str) -> bool:
        parts = range(1, len(text) + 1)
        return not (
            text in joined
            or any(text[-n:] in starts or text[:n] in ends for n in parts)
            or any(control in text for control in controls)
        )

    return [text for text in set(literals) if len(text) <= LITERAL and is_apart(text)]


def _any_of(texts: Collection[str]) -> str:
    """Return a pattern that matches the longest of `texts` in time independent of their number."""
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    return _branches(tree)


def _branches(node: dict[str, Any]) -> str:
    choices = [re.escape(char) + _branches(rest) for char, rest in node.items() if char]
    if not choices:
        return ""
    pattern = choices[0] if len(choices) == 1 and "" not in node else f"(?:{'|'.join(choices)})"
    return f"{pattern}?" if "" in node else pattern
