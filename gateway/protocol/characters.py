"""Sets of characters, and how JSON writes one of them inside a string: as a grammar's rule says it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.protocol.grammar import literal

_LAST: Final = 0x10FFFF
_ESCAPES: Final = {0x22: '\\"', 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
"""Characters that JSON writes in two."""
# What a string may hold as it is; C1 and other controls are left to those who ask for them by name.
_PLAIN: Final = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0xA0, 0xD7FF), (0xE000, _LAST))


@dataclass(frozen=True)
class Characters:
    """Code points as ranges, first and last, in order and apart."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Characters:
        """All in any of these."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    @classmethod
    def among(cls, text: str) -> Characters:
        """Those of `text`."""
        return cls.of((ord(c), ord(c)) for c in text)

    def __or__(self, other: Characters) -> Characters:
        """Those of either."""
        return Characters.of((*self.ranges, *other.ranges))

    def __and__(self, other: Characters) -> Characters:
        """Those of both."""
        pairs = ((max(a, c), min(b, d)) for a, b in self.ranges for c, d in other.ranges)
        return Characters.of((first, last) for first, last in pairs if first <= last)

    def __invert__(self) -> Characters:
        """All others."""
        gaps, begin = [], 0
        for first, last in self.ranges:
            if begin < first:
                gaps.append((begin, first - 1))
            begin = last + 1
        return Characters.of([*gaps, (begin, _LAST)] if begin <= _LAST else gaps)

    def written(self) -> str | None:
        """The body of a rule for one of them in a JSON string; None when there is no such one.

        Controls are left out where there is anything else.
        """
        plain = (self & Characters(_PLAIN)).ranges
        parts = ["[" + "".join(_range(first, last) for first, last in plain) + "]"] if plain else []
        parts += [literal(text) for code, text in _ESCAPES.items() if (self & Characters(((code, code),))).ranges]
        if not parts:
            controls = (self & Characters(((0, 0x1F), (0x7F, 0x9F)))).ranges
            parts = [literal(f"\\u{code:04X}") for first, last in controls for code in range(first, last + 1)]
        return f"({' | '.join(parts)})" if len(parts) > 1 else "".join(parts) or None


def _range(first: int, last: int) -> str:
    return _code(first) if first == last else f"{_code(first)}-{_code(last)}"


def _code(code: int) -> str:
    """A character of a class as no notation can misread it."""
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02X}" if code < 0x80 else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
