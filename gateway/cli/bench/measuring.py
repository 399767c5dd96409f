"""The measurements, in the order in which they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Final

import psutil

from gateway.cli.bench.asking import Questions, at_once, conversation
from gateway.cli.bench.memory import Watch
from gateway.cli.bench.results import Answer, Effort, Latency, Load, Phase, Round, Start
from gateway.cli.bench.subject import BenchError, Subject, Workshop

SHAPES: Final = ((20, 100), (50, 150))
"""Tokens of question and answer, as in the write-up; see writeup.py."""
LOAD_SHAPE: Final = (30, 64)
IDLE_SECONDS: Final = 2.0
"""`idle_unload` during the measurement of memory."""
UNLOAD_SECONDS: Final = 30.0
Step = Callable[[], None]


class Measuring:
    """Measurements of one model. They call `step` after each round, and raise BenchError."""

    def __init__(self, workshop: Workshop, model: Path, effort: Effort) -> None:
        """Measure `model` with gateways of `workshop`; `effort` sets the number of rounds."""
        self._workshop = workshop
        self._model = model
        self._effort = effort

    @cached_property
    def _questions(self) -> Questions:
        """Created while a gateway runs, which has checked the file in a restricted process before."""
        return Questions(self._model)

    async def memory(self, step: Step) -> list[Phase]:
        """Measure the memory by phase of a session."""
        with self._workshop.started(idle_unload=IDLE_SECONDS) as subject:
            watch = Watch(subject)
            with watch.watching():
                await self._session(watch, subject, step)
            return watch.phases

    async def _session(self, watch: Watch, subject: Subject, step: Step) -> None:
        async def hold(name: str) -> None:
            with watch.phase(name):
                await asyncio.sleep(self._effort.hold_seconds)

        await hold("before")
        async with conversation(subject.address, self._questions) as session:
            await session.load()
            await hold("loaded")
            with watch.phase("first"):
                await session.ask(*SHAPES[0], "first")
            step()
            await hold("after")
            with watch.phase("rounds"):
                for number in range(self._effort.rounds):
                    await session.ask(*SHAPES[0], f"round {number}")
                    step()
        await _wait_for_rest(subject)
        await hold("rest")
        step()

    async def starts(self, step: Step) -> list[Start]:
        """Measure starts, each with an immediate request."""
        starts = []
        for number in range(self._effort.starts):
            with self._workshop.started() as subject:
                [answer] = await at_once(subject.address, self._questions, 1, SHAPES[0][0], 1, f"start {number}")
                starts.append(_start(subject, answer))
            step()
        return starts

    async def latency(self, subject: Subject, step: Step) -> list[Latency]:
        """Measure latency: one conversation at a time, a new one for each answer."""
        await at_once(subject.address, self._questions, 1, *SHAPES[0], "warm")
        return [await self._shape(subject, *shape, step) for shape in SHAPES]

    async def _shape(self, subject: Subject, question: int, answer: int, step: Step) -> Latency:
        answers: list[Answer] = []
        began, before = time.monotonic(), _processor_seconds(subject)
        while not self._enough(answers, began):
            seed = f"{question} {len(answers)}"
            answers += await at_once(subject.address, self._questions, 1, question, answer, seed)
            step()
        seconds, after = time.monotonic() - began, _processor_seconds(subject)
        gateway, engines = ((now - then) / seconds for now, then in zip(after, before, strict=True))
        return Latency(question, answers, gateway, engines)

    async def load(self, subject: Subject, step: Step) -> list[Load]:
        """Measure throughput with several concurrent conversations."""
        loads = []
        # Not counted: this round loads as many engines as will be used.
        await at_once(subject.address, self._questions, max(self._effort.load), *LOAD_SHAPE, "load")
        for count in self._effort.load:
            rounds: list[Round] = []
            began = time.monotonic()
            while not self._enough(rounds, began):
                seed, asked = f"load {count} {len(rounds)}", time.monotonic()
                answers = await at_once(subject.address, self._questions, count, *LOAD_SHAPE, seed)
                rounds.append(Round(answers, time.monotonic() - asked))
                step()
            loads.append(Load(count, rounds))
        return loads

    def _enough(self, rounds: list[Answer] | list[Round], began: float) -> bool:
        late = time.monotonic() - began > self._effort.part_seconds
        return len(rounds) >= (1 if late else self._effort.rounds)


def _start(subject: Subject, answer: Answer) -> Start:
    gateway, engine = subject.logged("serving"), subject.logged("engine ready")
    parts = {name: gateway[f"{name}_seconds"] for name in ("configuration", "vocabulary", "parts", "listening")}
    weights, context = engine["weights_seconds"], engine["context_seconds"]
    return Start(
        python=subject.ready_seconds - sum(parts.values()),
        **parts,
        engine=engine["seconds"] - weights - context,
        weights=weights,
        context=context,
        first_token=subject.ready_seconds + answer.first,
    )


async def _wait_for_rest(subject: Subject) -> None:
    deadline = time.monotonic() + IDLE_SECONDS + UNLOAD_SECONDS
    while subject.engines():
        if time.monotonic() > deadline:
            raise BenchError("an idle engine was not unloaded")
        await asyncio.sleep(0.05)


def _processor_seconds(subject: Subject) -> tuple[float, float]:
    """Return the CPU seconds used so far by the gateway and by its engines."""

    def spent(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return spent(subject.process), sum(map(spent, subject.engines()))
