"""The load for both sides: conversations of fixed shapes, with seeded texts that all differ."""

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
"""Number of distinct words in texts, enough that two texts share no prefix."""
WORD: Final = re.compile(rb" [a-z]{2,9}")


@dataclass(frozen=True)
class Load:
    """A type of conversation; all numbers are tokens."""

    name: str
    system: int
    """Length of the system prompt, which all conversations share."""
    turn: tuple[int, int]
    """Minimum and maximum new tokens per turn, including those of the chat template."""
    answer: int


LOADS: Final = {load.name: load for load in (Load("chat", 160, (28, 32), 128), Load("document", 160, (150, 300), 64))}


MODELS: Final = {"standin": standin, "embedded": embedded}


@dataclass
class Subject:
    """The model that both sides serve, as far as the client needs to know it."""

    name: str
    """One of MODELS."""
    path: Path
    vocabulary: Vocabulary
    words: list[str] = field(init=False)
    bias: dict[str, float] = field(init=False)
    """`logit_bias` that prevents answers from ending early, so that both sides generate the same number of tokens."""

    def __post_init__(self) -> None:
        """Find words that are one token each, and the tokens that end an answer."""
        tokens = range(self.vocabulary.size)
        self.words = [word for _, word in zip(range(WORDS), self._single_token_words(), strict=False)]
        # The stand-in never generates the end of an answer.
        ends = [] if self.name == "standin" else [token for token in tokens if self.vocabulary.ends_generation(token)]
        self.bias = {str(token): -100.0 for token in ends}

    def _single_token_words(self) -> Iterator[str]:
        for token in range(self.vocabulary.size):
            piece = self.vocabulary.piece(token)
            if WORD.fullmatch(piece) and self.vocabulary.tokenize(piece.decode(), special=False) == [token]:
                yield piece.decode()

    def text(self, tokens: int, source: random.Random) -> str:
        """Return a text of exactly `tokens` tokens."""
        text = "".join(source.choices(self.words, k=tokens))[1:]
        # The first word has no leading space and may take more than one token.
        over = len(self.vocabulary.tokenize(text, special=False)) - tokens
        return text.rsplit(" ", over)[0] if over > 0 else text


@functools.cache
def subject(name: str) -> Subject:
    """Return one of MODELS, which is created if necessary. Raises ModelLoadError."""
    path = MODELS[name]()
    return Subject(name, path, Model(path, vocab_only=True).vocabulary)


@dataclass(frozen=True)
class Conversation:
    """The texts of one conversation."""

    system: str
    turns: list[str]


def conversations(load: Load, subject: Subject, streams: int, seed: int) -> list[Conversation]:
    """Return texts for `streams` conversations. Each `seed` gives different texts with the same system prompt."""
    system = subject.text(load.system, random.Random(load.name))
    source = random.Random(f"{load.name} {streams} {seed}")
    return [
        Conversation(system, [subject.text(source.randint(*load.turn) - TEMPLATE, source) for _ in range(TURNS)])
        for _ in range(streams)
    ]


TEMPLATE: Final = 8
"""Approximate number of tokens that ChatML adds to a turn."""
