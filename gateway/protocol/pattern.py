r"""Regular expressions as grammars: the part of ECMAScript's that JSON schemas use, for the inside of a JSON string.

Where dialects differ about a class (is `é` a `\w`?), only what all take for in it is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.protocol.characters import Characters

MAX_PATTERN: Final = 1024
"""Characters of a pattern."""
MAX_NESTED: Final = 16
MAX_TIMES: Final = 512
BEFORE: Final = 32
"""Characters before what may stand anywhere: a model that does not come to it by itself is made to."""
SOME: Final = 4
"""Times that a part comes at most whose own length varies, too, where there is a maxLength."""

_FOREIGN: Final = Characters(((0x80, 0x10FFFF),))
_DIGITS: Final = Characters(((0x30, 0x39),))
_WORD: Final = Characters.of([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
_SPACE: Final = Characters.among(" \t\n\r")
_SPACES: Final = Characters.of([(0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680),
                                (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F),
                                (0x3000, 0x3000), (0xFEFF, 0xFEFF)])  # fmt: skip
# Of each class what is surely in it, and what may be.
_CLASSES: Final = {
    "d": (_DIGITS, _DIGITS | _FOREIGN),
    "w": (_WORD, _WORD | _FOREIGN),
    "s": (_SPACE, _SPACES),
}
_LINE: Final = ~Characters.among("\n\r\u2028\u2029")
_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_COUNTS: Final = re.compile(r"\{(\d{1,4})(,(\d{0,4}))?\}")
_HEXADECIMAL: Final = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")


class PatternError(Exception):
    """A pattern that cannot be held to; the text says why."""


@dataclass(frozen=True)
class One:
    """One character."""

    characters: Characters

    @property
    def lengths(self) -> tuple[int, int | None]:
        """Fewest and most characters; None: without end."""
        return 1, 1

    @property
    def rules(self) -> int:
        """As how many rules it is compiled, at most: each repetition is one."""
        return 1

    def written(self) -> str:
        """The body of a rule."""
        body = self.characters.written()
        if body is None:
            raise PatternError("nothing can be in a class of it")
        return body


@dataclass(frozen=True)
class Row:
    """One after the other."""

    parts: tuple[Node, ...]

    @property
    def lengths(self) -> tuple[int, int | None]:
        """See One."""
        lengths = [part.lengths for part in self.parts]
        highs = [high for _, high in lengths if high is not None]
        return sum(low for low, _ in lengths), sum(highs) if len(highs) == len(lengths) else None

    @property
    def rules(self) -> int:
        """See One."""
        return sum(part.rules for part in self.parts)

    def written(self) -> str:
        """See One."""
        return " ".join(part.written() for part in self.parts)


@dataclass(frozen=True)
class Choice:
    """One of several."""

    parts: tuple[Node, ...]

    @property
    def lengths(self) -> tuple[int, int | None]:
        """See One."""
        lengths = [part.lengths for part in self.parts]
        highs = [high for _, high in lengths if high is not None]
        return min(low for low, _ in lengths), max(highs) if len(highs) == len(lengths) else None

    @property
    def rules(self) -> int:
        """See One."""
        return sum(part.rules for part in self.parts)

    def written(self) -> str:
        """See One."""
        return "(" + " | ".join(part.written() or '""' for part in self.parts) + ")"


@dataclass(frozen=True)
class Times:
    """Again and again."""

    part: Node
    least: int
    most: int | None

    @property
    def lengths(self) -> tuple[int, int | None]:
        """See One."""
        low, high = self.part.lengths
        return low * self.least, None if high is None or self.most is None else high * self.most

    @property
    def rules(self) -> int:
        """See One."""
        return (self.part.rules + 1) * max(1, self.least, self.most or 0)

    def written(self) -> str:
        """See One."""
        return f"({self.part.written()}){{{self.least},{'' if self.most is None else self.most}}}"


Node = One | Row | Choice | Times


@dataclass(frozen=True)
class Branch:
    """One of the alternatives of a whole pattern."""

    node: Node
    begins: bool
    """Whether the string begins with it."""
    ends: bool


def parse(pattern: str) -> list[Branch]:
    """The alternatives of `pattern`. Raises PatternError."""
    return _Parser(pattern).branches()


def written(branches: Sequence[Branch], char: str, least: int, most: int | None) -> tuple[str, int]:
    """The body of a rule for strings of `least` to `most` characters, and how many rules it makes.

    `char` is the rule for any character. Raises PatternError.
    """
    bodies, rules = zip(*(_framed(branch, char, least, most) for branch in branches), strict=True)
    return " | ".join(bodies), sum(rules)


def _framed(branch: Branch, char: str, least: int, most: int | None) -> tuple[str, int]:
    node, after = branch.node, ""
    before = "" if branch.begins or (least, most) != (0, None) else f"{char}{{0,{BEFORE}}}"
    low, high = node.lengths
    if not branch.ends and most is None:
        after = f"{char}{{{max(0, least - low)},}}"
    elif not branch.ends and high is not None and most is not None and high + max(0, least - low) <= most:
        after = f"{char}{{{max(0, least - low)},{most - high}}}"
    elif low < least or (most is not None and (high is None or high > most)):
        node = _fitted(node, least, most)
    body = " ".join(part for part in (before, node.written(), after) if part)
    return body or '""', node.rules + max(BEFORE, least, most or 0)


def _fitted(node: Node, least: int, most: int | None) -> Node:
    """`node` with its repetitions so often that it has `least` to `most` characters: some of what it takes, if not all.

    Raises PatternError.
    """
    parts = list(node.parts if isinstance(node, Row) else (node,))
    _raise(parts, least - Row(tuple(parts)).lengths[0])
    if most is not None:
        _lower(parts, most - Row(tuple(parts)).lengths[0])
    return Row(tuple(parts))


def _raise(parts: list[Node], missing: int) -> None:
    """Have the first repetition that can come so much more often."""
    if missing <= 0:
        return
    for i, part in enumerate(parts):
        if isinstance(part, Times) and part.part.lengths[0]:
            more = part.least - -missing // part.part.lengths[0]
            if (part.most is None or more <= part.most) and more <= MAX_TIMES:
                parts[i] = replace(part, least=more)
                return
    raise PatternError("what it takes is shorter than minLength")


def _lower(parts: list[Node], room: int) -> None:
    """Share `room`, the characters beyond the fewest, out between the parts that can have more."""
    for rigid in (part for part in parts if not isinstance(part, Times)):
        low, high = rigid.lengths
        if high is None:
            raise PatternError("it cannot be told how long what it takes is; say so by {…,…}, or leave maxLength out")
        room -= high - low
    elastic = [(i, part) for i, part in enumerate(parts) if isinstance(part, Times)]
    for left, (i, part) in zip(range(len(elastic), 0, -1), elastic, strict=True):
        low, share = part.lengths[0], max(0, room // left)
        parts[i] = _within(part, low + share)
        room -= (parts[i].lengths[1] or 0) - low
    if room < 0:
        raise PatternError("what it takes is longer than maxLength")


def _within(part: Times, most: int) -> Times:
    """`part`, so seldom that it has at most so many characters. What has many lengths comes few times."""
    low, high = part.part.lengths
    times = most // low if low == high else max(part.least, min(SOME, most // low))
    times = times if part.most is None else min(times, part.most)
    inner = part.part if low == high or not times else _fitted(part.part, 0, most // times)
    return Times(inner, part.least, times)


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise PatternError(f"it has more than {MAX_PATTERN} characters")
        self._text = pattern
        self._at = 0

    def branches(self) -> list[Branch]:
        found = [self._branch()]
        while self._take("|"):
            found.append(self._branch())
        if self._at < len(self._text):
            raise PatternError(f"it goes wrong at character {self._at + 1}")
        return found

    def _branch(self) -> Branch:
        begins = self._take("^")
        node = self._row(0)
        return Branch(node, begins, self._take("$"))

    def _row(self, depth: int) -> Row:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)$":
            parts.append(self._times(self._one(depth)))
        return Row(tuple(parts))

    def _one(self, depth: int) -> Node:
        c = self._next()
        if c == "(":
            return self._group(depth + 1)
        if c == "[":
            return One(self._class())
        if c == ".":
            return One(_LINE)
        if c == "\\":
            return One(self._escape()[0])
        if c in "^*+?":
            raise PatternError(f"`{c}` stands where it means nothing, or nothing that can be held to")
        return One(Characters.among(c))

    def _group(self, depth: int) -> Node:
        if depth > MAX_NESTED:
            raise PatternError(f"it is nested more than {MAX_NESTED} deep")
        if self._take("?"):
            if not (self._take(":") or re.compile(r"<[A-Za-z_]\w*>").match(self._text, self._at)):
                raise PatternError("it looks ahead or behind")
            named = re.compile(r"<[A-Za-z_]\w*>").match(self._text, self._at)
            self._at = named.end() if named else self._at
        rows = [self._row(depth)]
        while self._take("|"):
            rows.append(self._row(depth))
        if not self._take(")"):
            raise PatternError("a group has no end, or `$` stands inside of one")
        return Choice(tuple(rows)) if len(rows) > 1 else rows[0]

    def _times(self, node: Node) -> Node:
        counts = _COUNTS.match(self._text, self._at)
        if counts:
            self._at = counts.end()
            least = int(counts[1])
            most = least if counts[2] is None else int(counts[3]) if counts[3] else None
        elif self._at < len(self._text) and self._text[self._at] in "*+?":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self._next()]
        else:
            return node
        self._take("?")  # lazy: finds less, takes the same
        if max(least, most or 0) > MAX_TIMES or (most is not None and most < least):
            raise PatternError(f"counts go up to {MAX_TIMES}")
        if node.lengths[0] == 0:
            raise PatternError("it repeats what may be empty")
        if self._at < len(self._text) and self._text[self._at] in "*+?":
            raise PatternError("a repetition is repeated")
        return Times(node, least, most)

    def _class(self) -> Characters:
        inverted = self._take("^")
        surely: list[tuple[int, int]] = []  # merged once at the end: member by member takes quadratic time
        maybe: list[tuple[int, int]] = []
        while not self._take("]"):
            (sure, possible), single = self._member()
            if (
                single is not None
                and self._text[self._at : self._at + 1] == "-"
                and self._text[self._at + 1 :][:1] != "]"
            ):
                self._at += 1
                _, last = self._member()
                if last is None or last < single:
                    raise PatternError("a class has a range without a beginning or an end")
                sure = possible = Characters(((single, last),))
            surely += sure.ranges
            maybe += possible.ranges
        return ~Characters.of(maybe) if inverted else Characters.of(surely)

    def _member(self) -> tuple[tuple[Characters, Characters], int | None]:
        """What one member of a class stands for, surely and perhaps; its code, when it is one character."""
        c = self._next()
        if c != "\\":
            return (Characters.among(c), Characters.among(c)), ord(c)
        if self._take("b"):
            return (Characters.among("\b"), Characters.among("\b")), 8
        sure, possible = self._escape()
        [(first, last), *more] = sure.ranges or [(0, 1)]
        return (sure, possible), first if first == last and not more else None

    def _escape(self) -> tuple[Characters, Characters]:
        """What stands behind a backslash: surely, and perhaps."""
        code = _HEXADECIMAL.match(self._text, self._at)
        if code:
            self._at = code.end()
            number = int(code[1] or code[2] or code[3], 16)
            if number > 0x10FFFF:
                raise PatternError("there is no such character")
            return (Characters(((number, number),)),) * 2
        c = self._next()
        if c.lower() in _CLASSES:
            sure, possible = _CLASSES[c.lower()]
            return (sure, possible) if c.islower() else (~possible, ~sure)
        if c in _CONTROLS:
            return (Characters.among(_CONTROLS[c]),) * 2
        if c.isalnum():
            raise PatternError(f"`\\{c}` cannot be held to")
        return (Characters.among(c),) * 2

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise PatternError("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, c: str) -> bool:
        """Whether `c` comes next; it is passed then."""
        found = self._text.startswith(c, self._at)
        self._at += found
        return found
