"""Results of a benchmark, as stored in `bench.json`, in seconds, tokens and bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from gateway.cli.bench import writeup
from gateway.cli.figures import figure


class Spread(msgspec.Struct, frozen=True):
    """Repeated measurements of one figure."""

    values: list[float]

    @property
    def median(self) -> float:
        """Return the median."""
        return statistics.median(self.values)

    def text(self, scale: float = 1, digits: int = 0) -> str:
        """Return the median times `scale`, with minimum and maximum in brackets if they differ."""
        median, least, most = (figure(value * scale, digits) for value in (self.median, *self.bounds))
        return median if least == most else f"{median} ({least} – {most})"

    @property
    def bounds(self) -> tuple[float, float]:
        """Return minimum and maximum."""
        return min(self.values), max(self.values)


class Start(msgspec.Struct, frozen=True):
    """Seconds of one start by part, and of an immediate request."""

    python: float
    """Gateway: interpreter, imports, reading the settings."""
    configuration: float
    """API keys, binding the port."""
    vocabulary: float
    """Vocabulary, chat template, plan."""
    parts: float
    """Opening the stores, looking up the model's digest, building the app."""
    listening: float
    engine: float
    """Engine process, which starts with the first request: interpreter and imports."""
    weights: float
    """Mapping the weights, building the tensors."""
    context: float
    """KV cells and compute buffers."""
    first_token: float
    """From the start of the gateway process to the first token of a request sent as soon as it listens."""

    @property
    def ready(self) -> float:
        """Return the seconds until the gateway accepts requests."""
        return self.python + self.configuration + self.vocabulary + self.parts + self.listening


class Sample(msgspec.Struct, frozen=True):
    """Resident memory at one moment, in bytes."""

    at: float
    """Seconds since the first sample."""
    gateway: int
    engines: int

    @property
    def together(self) -> int:
        """Return the bytes of all processes; shared pages count for each process, as in the write-up."""
        return self.gateway + self.engines


class Phase(msgspec.Struct, frozen=True):
    """Memory during one part of a session."""

    name: str
    samples: list[Sample]

    def mean(self, part: Callable[[Sample], int]) -> float:
        """Return the mean of a part of the samples, in bytes."""
        return statistics.fmean(map(part, self.samples))

    @property
    def peak(self) -> int:
        """Return the maximum of all processes together, in bytes."""
        return max(sample.together for sample in self.samples)


class Answer(msgspec.Struct, frozen=True):
    """One answer, measured by the client."""

    prompt: int
    """Tokens, including those of the chat template."""
    cached: int
    output: int
    first: float
    """Seconds to the first token."""
    total: float

    @property
    def gap(self) -> float:
        """Return the mean time between tokens, in seconds."""
        return (self.total - self.first) / max(1, self.output - 1)


class Latency(msgspec.Struct, frozen=True):
    """Sequential answers of one shape."""

    question: int
    """Tokens of the question without the chat template."""
    answers: list[Answer]
    gateway_cores: float
    """CPU cores used by the gateway (CPU seconds per second)."""
    engine_cores: float
    """CPU cores used by the engines."""

    def spread(self, part: Callable[[Answer], float]) -> Spread:
        """Return a figure over all answers."""
        return Spread([part(answer) for answer in self.answers])


class Round(msgspec.Struct, frozen=True):
    """One round of concurrent questions."""

    answers: list[Answer]
    seconds: float
    """Seconds until the last answer was complete."""

    @property
    def rate(self) -> float:
        """Return the total tokens per second."""
        return sum(answer.output for answer in self.answers) / self.seconds


class Load(msgspec.Struct, frozen=True):
    """Several rounds with a number of concurrent conversations."""

    conversations: int
    rounds: list[Round]

    @property
    def rate(self) -> Spread:
        """Return the total tokens per second."""
        return Spread([measured.rate for measured in self.rounds])

    def spread(self, part: Callable[[Answer], float]) -> Spread:
        """Return a figure over all answers."""
        return Spread([part(answer) for measured in self.rounds for answer in measured.answers])


class Conditions(msgspec.Struct, frozen=True):
    """Model, machine, versions and date of the measurement."""

    model: str
    file_bytes: int
    processor: str
    cores: int
    memory_bytes: int
    samovar: str
    llama_cpp_python: str
    planned: bool
    """Whether the engines used a plan that `samovar tune` measured on this machine."""
    date: str
    bandwidth: float = 0.0
    """Bytes per second that the cores read from memory together; 0 in files of older versions."""
    others: float = 0.0
    """Cores that other processes kept busy meanwhile."""


class Results(msgspec.Struct, frozen=True):
    """All results."""

    conditions: Conditions
    starts: list[Start]
    memory: list[Phase]
    latency: list[Latency]
    load: list[Load]

    @property
    def compared(self) -> bool:
        """Whether the results are comparable with the write-up's, which are those of one model."""
        return writeup.measured(self.conditions.model)

    def start(self, part: Callable[[Start], float]) -> Spread:
        """Return a figure over all starts."""
        return Spread([part(start) for start in self.starts])


@dataclass(frozen=True)
class Effort:
    """Number of measurements."""

    starts: int
    rounds: int
    """Answers of each shape, and follow-ups in the conversation that measures memory."""
    load: Sequence[int]
    """Numbers of concurrent conversations."""
    hold_seconds: float
    """Seconds for which memory is sampled while idle."""
    part_seconds: float
    """Seconds after which a part starts no further round."""


FULL = Effort(starts=3, rounds=5, load=(1, 2, 4, 8), hold_seconds=1, part_seconds=90)
QUICK = Effort(starts=1, rounds=1, load=(1, 4), hold_seconds=0.4, part_seconds=30)
