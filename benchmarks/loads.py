"""The load for both sides: conversations of fixed shapes, with seeded texts that all differ."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.machine import embedded
from benchmarks.standin import standin
from engine import Model, Vocabulary
from gateway.cli.bench.texts import Texts

TURNS: Final = 3


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
    texts: Texts = field(init=False)
    bias: dict[str, float] = field(init=False)
    """`logit_bias` that prevents answers from ending early, so that both sides generate the same number of tokens."""

    def __post_init__(self) -> None:
        """Find words that are one token each, and the tokens that end an answer."""
        self.texts = Texts(self.vocabulary)
        self.bias = {} if self.name == "standin" else self.texts.bias  # the stand-in never ends an answer

    def text(self, tokens: int, source: random.Random) -> str:
        """Return a text of exactly `tokens` tokens."""
        return self.texts.text(tokens, source)


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
