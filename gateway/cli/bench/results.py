"""What was measured, as `bench.json` has it: seconds, tokens, and bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """A figure that was measured several times."""

    values: list[float]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def text(self, scale: float = 1, digits: int = 0) -> str:
        """The median times `scale`, and the least and greatest value where there are several."""
        median, least, most = (f"{value * scale:.{digits}f}" for value in (self.median, *self.bounds))
        return median if least == most else f"{median} ({least} – {most})"

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest."""
        return min(self.values), max(self.values)


class Start(msgspec.Struct, frozen=True):
    """One start, in seconds by part, and of a request that comes at once."""

    python: float
    """Of the gateway: interpreter and imports, settings read."""
    configuration: float
    """Keys, port taken."""
    vocabulary: float
    """Vocabulary, chat template, plan."""
    parts: float
    """Stores opened, model's digest looked up, app put together."""
    listening: float
    engine: float
    """Of the engine process, which starts with the first request: interpreter and imports."""
    weights: float
    """Mapped, tensors built."""
    context: float
    """KV cells and compute buffers."""
    first_token: float
    """From the beginning of the gateway's process to the first token of a request sent as soon as it listened."""

    @property
    def ready(self) -> float:
        """Until requests are taken."""
        return self.python + self.configuration + self.vocabulary + self.parts + self.listening

    @property
    def loading(self) -> float:
        """Of the engine, from its spawning on."""
        return self.engine + self.weights + self.context


class Sample(msgspec.Struct, frozen=True):
    """Resident memory at one moment, in bytes."""

    at: float
    """Seconds since the first sample."""
    gateway: int
    engines: int

    @property
    def together(self) -> int:
        """Of all processes; pages that two of them share count twice, as in the write-up."""
        return self.gateway + self.engines


class Phase(msgspec.Struct, frozen=True):
    """What memory was in a part of a session."""

    name: str
    samples: list[Sample]

    def mean(self, part: Callable[[Sample], int]) -> float:
        """Bytes on average."""
        return statistics.fmean(map(part, self.samples))

    @property
    def peak(self) -> int:
        """Bytes at most, of all processes."""
        return max(sample.together for sample in self.samples)


class Answer(msgspec.Struct, frozen=True):
    """One answer as a client saw it."""

    prompt: int
    """Tokens, with the template's."""
    cached: int
    output: int
    first: float
    """Seconds to the first token."""
    total: float

    @property
    def gap(self) -> float:
        """Seconds from one token to the next, on average."""
        return (self.total - self.first) / max(1, self.output - 1)


class Latency(msgspec.Struct, frozen=True):
    """Answers of one shape, one after the other."""

    question: int
    """Tokens of the question's text."""
    answers: list[Answer]
    gateway_cores: float
    """Processor seconds a second of the gateway, and of its engines."""
    engine_cores: float

    def spread(self, part: Callable[[Answer], float]) -> Spread:
        """A figure of all answers."""
        return Spread([part(answer) for answer in self.answers])


class Round(msgspec.Struct, frozen=True):
    """Conversations that ask at the same time."""

    answers: list[Answer]
    seconds: float
    """Until the last one had its answer."""

    @property
    def rate(self) -> float:
        """Tokens a second of all together."""
        return sum(answer.output for answer in self.answers) / self.seconds


class Load(msgspec.Struct, frozen=True):
    """So many conversations at once, several times."""

    conversations: int
    rounds: list[Round]

    @property
    def rate(self) -> Spread:
        """Tokens a second of all together."""
        return Spread([measured.rate for measured in self.rounds])

    def spread(self, part: Callable[[Answer], float]) -> Spread:
        """A figure of all answers."""
        return Spread([part(answer) for measured in self.rounds for answer in measured.answers])


class Conditions(msgspec.Struct, frozen=True):
    """What was measured, where and when."""

    model: str
    file_bytes: int
    processor: str
    cores: int
    memory_bytes: int
    samovar: str
    llama_cpp_python: str
    planned: bool
    """Whether engines worked by a plan that `samovar tune` measured here."""
    date: str


class Results(msgspec.Struct, frozen=True):
    """All of it."""

    conditions: Conditions
    starts: list[Start]
    memory: list[Phase]
    latency: list[Latency]
    load: list[Load]

    def start(self, part: Callable[[Start], float]) -> Spread:
        """A figure of all starts."""
        return Spread([part(start) for start in self.starts])


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    starts: int
    rounds: int
    """Answers of each shape, and follow-ups in the memory's conversation."""
    load: Sequence[int]
    """Conversations at once."""
    hold_seconds: float
    """How long memory is looked at when nothing happens."""
    part_seconds: float
    """After so much time a part begins no further round."""


FULL = Effort(starts=3, rounds=5, load=(1, 2, 4, 8), hold_seconds=1, part_seconds=90)
QUICK = Effort(starts=1, rounds=1, load=(1, 4), hold_seconds=0.4, part_seconds=30)
