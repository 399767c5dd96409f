"""What the clients ask, and how an answer is known to be right.

Two kinds of answer are known beforehand, whatever the model: a row of numbers that a grammar forces, in which a token
that is lost or doubled leaves a gap or a repetition, and a row of one letter that only its length ends. Two more are
the model's own, drawn greedily and with a seed: they are compared with what they were before anything was disturbed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

ANSWER: Final = 96
"""Tokens of an answer at most."""
OWN: Final = 48
"""Likewise of one that is the model's own: the longer, the more of them differ between two undisturbed runs."""
NUMBERS: Final = 32
"""Numbers of a forced row; with their spaces they are 159 bytes, and the tiny model's tokens are bytes."""
LETTER: Final = "A"
LETTER_TOKEN: Final = 65
"""Of a vocabulary that begins with the 256 bytes, as the tiny model's does."""


@dataclass(frozen=True)
class Question:
    """One request, but for what it continues."""

    key: str
    """Alike for alike requests: whose texts can be compared."""
    fields: dict[str, Any]
    expected: str | None
    """The text, where it is known beforehand."""


@dataclass
class Flaws:
    """What is wrong with one answer."""

    lost: int = 0
    """Tokens that never came."""
    doubled: int = 0
    wrong: bool = False
    """The text is not what it must be, and no loss or repetition explains it."""


def scripts(seed: int, count: int) -> list[list[Question]]:
    """Conversations of three turns each; the same `seed` gives the same."""
    return [list(_script(random.Random(f"{seed} {number}"), number)) for number in range(count)]


def _script(draw: random.Random, number: int) -> Iterator[Question]:
    kinds: list[Callable[[random.Random], tuple[dict[str, Any], str | None]]] = [_numbers, _letters, _greedy, _sampled]
    draw.shuffle(kinds)
    for turn, kind in enumerate(kinds[:3]):
        fields, expected = kind(draw)
        said = "".join(draw.choices("abcdefgh ", k=24))
        yield Question(f"{number}.{turn}", {"input": f"{number}.{turn} {said}", **fields}, expected)


def _numbers(draw: random.Random) -> tuple[dict[str, Any], str]:
    first = draw.randrange(1000, 9000)
    row = " ".join(str(first + i) for i in range(NUMBERS))
    form = {"type": "json_schema", "name": "row", "schema": {"const": row}}
    return {"text": {"format": form}, "temperature": 0, "max_output_tokens": 4 * ANSWER}, f'"{row}"'


def _letters(draw: random.Random) -> tuple[dict[str, Any], str]:
    count = draw.randrange(ANSWER // 2, ANSWER)
    bias = {str(LETTER_TOKEN): 100}
    return {"logit_bias": bias, "temperature": 0, "max_output_tokens": count}, LETTER * count


def _greedy(_: random.Random) -> tuple[dict[str, Any], None]:
    return {"temperature": 0, "max_output_tokens": OWN}, None


def _sampled(draw: random.Random) -> tuple[dict[str, Any], None]:
    fields = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": draw.randrange(1 << 32), "repeat_penalty": 1.1}
    return {**fields, "stop": ["zq"], "max_output_tokens": OWN}, None


def flaws(text: str, expected: str) -> Flaws:
    """How `text`, which should be `expected` and is whole, differs from it."""
    if text == expected:
        return Flaws()
    if set(text) <= {LETTER} and set(expected) == {LETTER}:
        more = len(text) - len(expected)
        return Flaws(lost=max(0, -more), doubled=max(0, more))
    came, due = Counter(text), Counter(expected)
    lost, doubled = (due - came).total(), (came - due).total()
    return Flaws(lost, doubled, wrong=not lost and not doubled)
