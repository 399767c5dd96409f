"""The clients' questions, and how answers are checked.

Two kinds of answer are known in advance, whatever the model: a sequence of numbers that a grammar forces, in which a
lost or duplicated token leaves a gap or a repetition, and a sequence of one letter that ends at its length limit. Two
more kinds are the model's own text, greedy and sampled with a seed: they are compared with undisturbed runs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

ANSWER: Final = 96
"""Maximum tokens of an answer."""
OWN: Final = 48
"""Maximum tokens of the model's own text; the longer, the more of them differ between two undisturbed runs."""
NUMBERS: Final = 32
"""Numbers in a forced sequence: 159 bytes with spaces, and the tiny model's tokens are bytes."""
LETTER: Final = "A"
LETTER_TOKEN: Final = 65
"""Id of LETTER in a vocabulary that begins with the 256 bytes, as the tiny model's does."""


@dataclass(frozen=True)
class Question:
    """One request, without the response that it continues."""

    key: str
    """Equal for equal requests, whose texts can be compared."""
    fields: dict[str, Any]
    expected: str | None
    """The text, if it is known in advance."""


@dataclass
class Flaws:
    """The errors in one answer."""

    lost: int = 0
    """Missing tokens."""
    doubled: int = 0
    wrong: bool = False
    """The text is unexpected, and no loss or repetition explains it."""


def scripts(seed: int, count: int) -> list[list[Question]]:
    """Return conversations of three turns each; the same `seed` gives the same ones."""
    return [list(_script(random.Random(f"{seed} {number}"), number)) for number in range(count)]


def _script(draw: random.Random, number: int) -> Iterator[Question]:
    kinds: list[Callable[[random.Random], tuple[dict[str, Any], str | None]]] = [_numbers, _letters, _greedy, _sampled]
    draw.shuffle(kinds)
    for turn, kind in enumerate(kinds[:3]):
        fields, expected = kind(draw)
        letters = "".join(draw.choices("abcdefgh ", k=24))
        yield Question(f"{number}.{turn}", {"input": f"{number}.{turn} {letters}", **fields}, expected)


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
    """Compare the complete `text` with `expected`."""
    if text == expected:
        return Flaws()
    if set(text) <= {LETTER} and set(expected) == {LETTER}:
        more = len(text) - len(expected)
        return Flaws(lost=max(0, -more), doubled=max(0, more))
    came, due = Counter(text), Counter(expected)
    lost, doubled = (due - came).total(), (came - due).total()
    return Flaws(lost, doubled, wrong=not lost and not doubled)
