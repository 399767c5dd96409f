"""External text in a rendered prompt, kept apart from the template's own text.

Two kinds of external text pass a template. The *content* of messages passes as it is, so that a template can look into
it, trim it and split it; only the characters that a control token could be made of are replaced, each by a private
character of Unicode. All other external text, which templates only copy (tools, arguments), passes as a mark.
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


class Marks:
    """Placeholders for external text while a template renders."""

    def __init__(self, secret: str, controls: ControlTexts) -> None:
        self._secret = secret
        self._controls = controls
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def protect(self, text: str) -> str:
        """Return the content of a message in the form in which a template may look into it."""
        return self._controls.protect(text)

    def hide(self, value: Any, keep: frozenset[str] = frozenset()) -> Any:
        """Return `value` with each text replaced by a mark, keys too unless in `keep`; equal texts get equal marks."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, dict):
            return {key if key in keep else self._hide(key): self.hide(inner, keep) for key, inner in value.items()}
        return [self.hide(inner, keep) for inner in value] if isinstance(value, list) else value

    def dump(self, value: Any, *, indent: int | None, separators: tuple[str, str] | None, sort_keys: bool) -> str:
        """Return a mark for `value` as JSON, as one external text: models never saw JSON tokenized in pieces."""
        dumped = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)

        def escaped(mark: re.Match[str]) -> str:
            return json.dumps(self._texts[int(mark[1])], ensure_ascii=False)[1:-1]

        return self._hide(self._controls.reveal(self._pattern.sub(escaped, dumped)))

    def spans(self, rendered: str) -> Iterable[Span]:
        """Split a rendered prompt into the template's text with the contents, and the texts behind the marks."""
        for i, part in enumerate(self._pattern.split(rendered)):
            if i % 2:
                yield from _span(self._texts[int(part)], external=True)
            else:
                yield from self._controls.spans(part)

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{self._secret}\.(\d+);")

    def _hide(self, content: str) -> str:
        # Leading and trailing space stays outside of the mark, so that a template can trim it.
        text = content.strip()
        if not text:
            return content
        start = content.index(text[0])
        before, after = content[:start], content[start + len(text) :]
        number = self._numbers.setdefault(text, len(self._texts))
        if number == len(self._texts):
            self._texts.append(text)
        return f"{before}{self._secret}.{number};{after}"


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
