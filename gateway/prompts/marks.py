"""External text in a rendered prompt, kept apart from the template's own text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """A piece of a rendered prompt: the template's own text, or external text."""

    text: str
    external: bool


class Marks:
    """Placeholders for external text while a template renders."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}

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

        return self._hide(self._pattern.sub(escaped, dumped))

    def spans(self, rendered: str) -> Iterable[Span]:
        """Split a rendered prompt into the template's own text and the texts behind the marks."""
        for i, part in enumerate(self._pattern.split(rendered)):
            text = self._texts[int(part)] if i % 2 else part
            if text:
                yield Span(text, bool(i % 2))

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
