"""The measurements, in the order in which they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Final

import psutil

from engine import Model
from gateway.cli.bench.asking import at_once, conversation
from gateway.cli.bench.gateway import BenchError, MeasuredGateway
from gateway.cli.bench.memory import Watch
from gateway.cli.bench.results import Answer, Effort, Latency, Load, Phase, Round, Start
from gateway.cli.bench.texts import Texts

SHAPES: Final = ((20, 100), (50, 150))
"""Tokens of question and answer, as in the write-up; see writeup.py."""
LOAD_SHAPE: Final = (30, 64)
IDLE_SECONDS: Final = 2.0
"""`idle_unload` during the measurement of memory."""
UNLOAD_SECONDS: Final = 30.0
Step = Callable[[], None]


class Measuring:
    """Measurements of one model. They call `step` after each round, and raise BenchError and LaunchError."""

    def __init__(self, gateway: MeasuredGateway, model: Path, effort: Effort) -> None:
        """Measure `model` with `gateway`; `effort` sets the number of rounds."""
        self._gateway = gateway
        self._model = model
        self._effort = effort

    @cached_property
    def _texts(self) -> Texts:
        """Created while a gateway runs, which has checked the file in a restricted process before."""
        return Texts(Model(self._model, vocab_only=True).vocabulary)

    async def memory(self, step: Step) -> list[Phase]:
        """Measure the memory by phase of a session."""
        with self._gateway.running(idle_unload=IDLE_SECONDS):
            watch = Watch(self._gateway)
            with watch.watching():
                await self._session(watch, step)
            return watch.phases

    async def _session(self, watch: Watch, step: Step) -> None:
        async def hold(name: str) -> None:
            with watch.phase(name):
                await asyncio.sleep(self._effort.hold_seconds)

        await hold("before")
        async with conversation(self._gateway.address, self._texts) as session:
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
        await self._wait_for_rest()
        await hold("rest")
        step()

    async def starts(self, step: Step) -> list[Start]:
        """Measure starts, each with an immediate request."""
        starts = []
        for number in range(self._effort.starts):
            with self._gateway.running():
                [answer] = await self._ask(1, SHAPES[0][0], 1, f"start {number}")
                starts.append(_start(self._gateway, answer))
            step()
        return starts

    async def latency(self, step: Step) -> list[Latency]:
        """Measure latency on a running gateway: one conversation at a time, a new one for each answer."""
        await self._ask(1, *SHAPES[0], "warm")
        return [await self._shape(*shape, step) for shape in SHAPES]

    async def _shape(self, question: int, answer: int, step: Step) -> Latency:
        answers: list[Answer] = []
        began, before = time.monotonic(), _processor_seconds(self._gateway)
        while not self._enough(answers, began):
            seed = f"{question} {len(answers)}"
            answers += await self._ask(1, question, answer, seed)
            step()
        seconds, after = time.monotonic() - began, _processor_seconds(self._gateway)
        gateway, engines = ((now - then) / seconds for now, then in zip(after, before, strict=True))
        return Latency(question, answers, gateway, engines)

    async def load(self, step: Step) -> list[Load]:
        """Measure throughput of a running gateway with several concurrent conversations."""
        loads = []
        # Not counted: this round loads as many engines as will be used.
        await self._ask(max(self._effort.load), *LOAD_SHAPE, "load")
        for count in self._effort.load:
            rounds: list[Round] = []
            began = time.monotonic()
            while not self._enough(rounds, began):
                seed, asked = f"load {count} {len(rounds)}", time.monotonic()
                answers = await self._ask(count, *LOAD_SHAPE, seed)
                rounds.append(Round(answers, time.monotonic() - asked))
                step()
            loads.append(Load(count, rounds))
        return loads

    async def _ask(self, count: int, question: int, answer: int, seed: str) -> list[Answer]:
        return await at_once(self._gateway.address, self._texts, count, question, answer, seed)

    async def _wait_for_rest(self) -> None:
        deadline = time.monotonic() + IDLE_SECONDS + UNLOAD_SECONDS
        while self._gateway.engines():
            if time.monotonic() > deadline:
                raise BenchError("an idle engine was not unloaded")
            await asyncio.sleep(0.05)

    def _enough(self, rounds: list[Answer] | list[Round], began: float) -> bool:
        late = time.monotonic() - began > self._effort.part_seconds
        return len(rounds) >= (1 if late else self._effort.rounds)


def _start(gateway: MeasuredGateway, answer: Answer) -> Start:
    serving, engine = gateway.logged("serving"), gateway.logged("engine ready")
    parts = {name: serving[f"{name}_seconds"] for name in ("configuration", "vocabulary", "parts", "listening")}
    weights, context = engine["weights_seconds"], engine["context_seconds"]
    return Start(
        python=gateway.ready_seconds - sum(parts.values()),
        **parts,
        engine=engine["seconds"] - weights - context,
        weights=weights,
        context=context,
        first_token=gateway.ready_seconds + answer.first,
    )


def _processor_seconds(gateway: MeasuredGateway) -> tuple[float, float]:
    """Return the CPU seconds used so far by the gateway and by its engines."""

    def spent(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return spent(gateway.process), sum(map(spent, gateway.engines()))
