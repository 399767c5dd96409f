"""The cost of continuing answers while prompts are computed, compared with a scheduler that computes prompts first.

python -m benchmarks.prompts_first [--model standin] [--streams 8 16] [--rounds 3]: the document load (prompts of 150
to 300 new tokens, answers of 64, three turns) on an engine's own loop in this process, alternating between both
schedulers; tokens per second, first token, and the longest gaps between tokens.
"""

from __future__ import annotations

import random
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from unittest import mock

from benchmarks.bare import GREEDY
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import LOADS, TURNS, subject
from benchmarks.loop import configuration, serve
from benchmarks.machine import cores
from benchmarks.runs import percentile
from engine import Finished, Generate, Model, Tokens, WorkerConfig
from engine.messages import Frames, SetThreads, frame, from_engine_decoder
from engine.scheduler import Scheduler, Step

LOAD: Final = LOADS["document"]
WORDS: Final = range(256, 4096)


class PromptsFirst(Scheduler):
    """A scheduler that computes all waiting prompts before any answer continues, as llama-server does."""

    def schedule(self, *, brief: bool = False) -> Step:
        """Return the next step; a step without parts if nothing runs."""
        return self._prefill(brief=brief) if self._prefilling else super().schedule(brief=brief)


@dataclass
class Talk:
    """One conversation and its timing."""

    tokens: list[int]
    """All tokens so far, prompts and answers."""
    began: float = 0.0
    """Start of the first turn."""
    asked: float = 0.0
    firsts: list[float] = field(default_factory=list)
    """Seconds to the first token, by turn."""
    gaps: list[float] = field(default_factory=list)
    last: float = 0.0
    """Time of the last token; 0.0 before the first token of a turn."""
    generated: int = 0
    """Tokens of answers."""

    def receive(self, ids: list[int], now: float) -> None:
        """Record tokens that arrived at `now`."""
        if self.last:
            self.gaps.append(now - self.last)
        else:
            self.firsts.append(now - self.asked)
        self.last = now
        self.generated += len(ids)
        self.tokens += ids


def ask(far: socket.socket, number: int, talk: Talk, chance: random.Random) -> None:
    """Start a turn."""
    talk.tokens += chance.choices(WORDS, k=chance.randint(*LOAD.turn))
    talk.asked, talk.last = time.perf_counter(), 0.0
    talk.began = talk.began or talk.asked
    far.sendall(frame(Generate(number, list(talk.tokens), LOAD.answer, GREEDY, str(number))))


def converse(far: socket.socket, talks: list[Talk], chance: random.Random) -> None:
    """Act as the gateway: run all conversations to their end, then close the connection."""
    far.sendall(frame(SetThreads(cores())))
    turns = [TURNS] * len(talks)
    for number, talk in enumerate(talks):
        ask(far, number, talk, chance)
    frames = Frames()
    while any(turns):
        for body in frames.feed(far.recv(1 << 20)):
            message = from_engine_decoder.decode(body)
            if isinstance(message, Tokens):
                talks[message.request].receive(message.ids, time.perf_counter())
            if isinstance(message, Finished):
                turns[message.request] -= 1
                if turns[message.request]:
                    ask(far, message.request, talks[message.request], chance)
    far.close()


def run(model: Model, config: WorkerConfig, scheduler: type[Scheduler], streams: int, seed: int) -> dict[str, float]:
    """Return the figures of one run, by unit."""
    chance = random.Random(seed)
    system = chance.choices(WORDS, k=LOAD.system)
    talks = [Talk(list(system)) for _ in range(streams)]
    with mock.patch("engine.core.Scheduler", scheduler):
        serve(model, config, lambda far: converse(far, talks, chance))
    seconds = max(talk.last for talk in talks) - min(talk.began for talk in talks)
    return {
        "tok/s": sum(talk.generated for talk in talks) / seconds,
        "s": statistics.median(first for talk in talks for first in talk.firsts),
        "ms": 1000 * percentile([gap for talk in talks for gap in talk.gaps], 0.99),
    }


def figures(name: str, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> Iterator[Figure]:
    """Yield the figures of both schedulers, and the ratio of their speeds."""
    for side, runs in (("as is", ours), ("prompts first", theirs)):
        for unit, what in (("tok/s", "tokens a second"), ("s", "first token"), ("ms", "p99 gap")):
            values = [run[unit] for run in runs]
            yield Figure(benchmark="prompts_first", name=f"{name}, {side}: {what}", values=values, unit=unit)
    ratios = [a["tok/s"] / b["tok/s"] for a, b in zip(ours, theirs, strict=True)]
    yield Figure(benchmark="prompts_first", name=f"{name}: speed over prompts first", values=ratios, unit="x")


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="standin")
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    options = start_benchmark(parser)
    path = subject(options.model).path
    model, config = Model(path), configuration(path)
    for streams in options.streams:
        ours, theirs = [], []
        for seed in range(options.rounds):
            ours.append(run(model, config, Scheduler, streams, seed))
            theirs.append(run(model, config, PromptsFirst, streams, seed))
        publish(list(figures(f"{options.model}, {streams} streams of documents", ours, theirs)))


if __name__ == "__main__":
    main()
