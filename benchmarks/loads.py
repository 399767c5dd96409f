"""What is asked of both sides: conversations of set shapes, with seeded texts that differ from one to the next."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.machine import embedded
from benchmarks.standin import standin
from engine import Model, Vocabulary

TURNS: Final = 3
WORDS: Final = 4096
"""Different words that texts are made of: enough that two texts have nothing in common."""
WORD: Final = re.compile(rb" [a-z]{2,9}")


@dataclass(frozen=True)
class Load:
    """A kind of conversation; all numbers are tokens."""

    name: str
    system: int
    """Of the system prompt, the same one for everybody."""
    turn: tuple[int, int]
    """New ones a turn, what the template adds included: at least and at most."""
    answer: int


LOADS: Final = {load.name: load for load in (Load("chat", 160, (28, 32), 128), Load("document", 160, (150, 300), 64))}


MODELS: Final = {"standin": standin, "embedded": embedded}


@dataclass
class Subject:
    """The model that both sides serve, as far as the asking side has to know it."""

    name: str
    """One of MODELS."""
    path: Path
    vocabulary: Vocabulary
    words: list[str] = field(init=False)
    bias: dict[str, float] = field(init=False)
    """Keeps answers from ending early where they would, so that both sides write as many tokens."""

    def __post_init__(self) -> None:
        """Find words that are one token each, and the tokens that end an answer."""
        tokens = range(self.vocabulary.size)
        self.words = [word for _, word in zip(range(WORDS), self._single_token_words(), strict=False)]
        # The stand-in never ends an answer by itself.
        ends = [] if self.name == "standin" else [token for token in tokens if self.vocabulary.ends_generation(token)]
        self.bias = {str(token): -100.0 for token in ends}

    def _single_token_words(self) -> Iterator[str]:
        for token in range(self.vocabulary.size):
            piece = self.vocabulary.piece(token)
            if WORD.fullmatch(piece) and self.vocabulary.tokenize(piece.decode(), special=False) == [token]:
                yield piece.decode()

    def text(self, tokens: int, source: random.Random) -> str:
        """A text of just so many tokens."""
        text = "".join(source.choices(self.words, k=tokens))[1:]
        # The first word stands without its space and may take more than one token.
        over = len(self.vocabulary.tokenize(text, special=False)) - tokens
        return text.rsplit(" ", over)[0] if over > 0 else text


@functools.cache
def subject(name: str) -> Subject:
    """One of MODELS, written first if need be. Raises ModelLoadError."""
    path = MODELS[name]()
    return Subject(name, path, Model(path, vocab_only=True).vocabulary)


@dataclass(frozen=True)
class Conversation:
    """One session's texts."""

    system: str
    turns: list[str]


def conversations(load: Load, subject: Subject, streams: int, seed: int) -> list[Conversation]:
    """Texts for so many sessions. Another `seed` gives other ones, with the same system prompt."""
    system = subject.text(load.system, random.Random(load.name))
    source = random.Random(f"{load.name} {streams} {seed}")
    return [
        Conversation(system, [subject.text(source.randint(*load.turn) - TEMPLATE, source) for _ in range(TURNS)])
        for _ in range(streams)
    ]


TEMPLATE: Final = 8
"""Tokens that ChatML puts around a turn, about."""
