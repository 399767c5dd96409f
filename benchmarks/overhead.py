"""Python's share of an engine's step: the time spent neither inside llama.cpp nor on sampling.

python -m benchmarks.overhead [--model standin] [--streams 1 2 8 16]: runs the engine's own loop in this process and
times every call of llama.cpp and of the sampler, over steps that only decode. The engine has as many cells as under
`samovar serve`, and from eight streams on the prompts are long enough that answers are decoded on seats.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, Final
from unittest import mock

import llama_cpp

from benchmarks.bare import GREEDY
from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import Subject, subject
from benchmarks.loop import configuration, serve
from benchmarks.machine import cores
from engine import Finished, Generate, Model, WorkerConfig
from engine.candidates import Logits
from engine.messages import Frames, SetThreads, frame, from_engine_decoder
from engine.sampler import Sampler

ROUNDS: Final = 5
STEPS: Final = 60
"""Decode steps per round that are measured."""
MARGIN: Final = 40
"""Tokens of an answer before and after these steps, while other streams compute prompts or have ended."""
PROMPT_TOKENS: Final = 200
"""Prompt length of each stream: with eight or sixteen, reading each other's cells costs more than seats."""
SEATED: Final = 8
"""Number of streams from which all are decoded on seats."""
GOAL: Final = 3.0
"""Upper bound for Python's share, in per cent."""


class Clocked:
    """The module llama_cpp with every function timed."""

    def __init__(self, module: Any) -> None:
        """Wrap `module`."""
        self._module = module
        self._inside = self._drawing = 0.0
        self.steps: list[tuple[float, float, float]] = []
        """At the start of each step: the time, and the seconds so far inside llama.cpp and on sampling."""
        self.contexts: list[object] = []
        """The context of each step."""

    def __getattr__(self, name: str) -> Any:
        """Return the module's attribute, timed if it is a function; cached for the next lookup."""
        found = getattr(self._module, name)
        if name.startswith("llama_") and not isinstance(found, type):
            found = self._clocked(found, is_step=name == "llama_decode")
        setattr(self, name, found)
        return found

    def _clocked(self, function: Callable[..., Any], *, is_step: bool) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            if is_step:
                self.steps.append((began, self._inside, self._drawing))
                self.contexts.append(arguments[0])
            try:
                return function(*arguments)
            finally:
                self._inside += time.perf_counter() - began

        return call

    def draw(self, sampler: Sampler, logits: Logits) -> int:
        """Replace Sampler.draw."""
        began, inside = time.perf_counter(), self._inside
        token = _draw(sampler, logits)
        # A grammar calls llama.cpp, which is counted there.
        self._drawing += time.perf_counter() - began - (self._inside - inside)
        return token


_draw = Sampler.draw


def converse(far: socket.socket, streams: int, tokens: int) -> None:
    """Act as the gateway: send requests and wait for their end. Polls rarely, to leave the GIL to the engine."""
    prompt = list(range(256, 256 + PROMPT_TOKENS))
    far.sendall(frame(SetThreads(cores())))
    for number in range(streams):
        far.sendall(frame(Generate(number, prompt, tokens, GREEDY, str(number))))
    frames, left = Frames(), streams
    while left:
        time.sleep(0.05)
        for body in frames.feed(far.recv(1 << 20)):
            left -= isinstance(from_engine_decoder.decode(body), Finished)
    far.close()


def shares(model: Model, config: WorkerConfig, streams: int) -> tuple[float, float]:
    """Return the per cent of decode time spent (neither inside llama.cpp nor on sampling, on sampling)."""
    clocked = Clocked(llama_cpp)
    draw = mock.patch.object(Sampler, "draw", lambda sampler, logits: clocked.draw(sampler, logits))
    with draw, mock.patch("engine.llama.llama_cpp", clocked):
        serve(model, config, lambda far: converse(far, streams, STEPS + MARGIN))
    # At the very end, the streams that started first have already ended.
    end = -2 * streams - 2
    if streams >= SEATED and clocked.contexts[0] in clocked.contexts[end - STEPS : end]:
        raise SystemExit(f"{streams} streams were not decoded on seats")
    first, last = clocked.steps[end - STEPS], clocked.steps[end]
    whole, inside, drawing = (later - earlier for earlier, later in zip(first, last, strict=True))
    return 100 * (whole - inside - drawing) / whole, 100 * drawing / whole


def measure(subject: Subject, streams: list[int]) -> None:
    """Publish the shares by number of streams."""
    model, config = Model(subject.path), configuration(subject.path)
    for count in streams:
        python, drawing = zip(*(shares(model, config, count) for _ in range(ROUNDS)), strict=True)
        goal = GOAL if subject.name == "standin" else None
        for what, values, promised in (("Python's", python, goal), ("the sampler's", drawing, None)):
            name = f"{subject.name}, {count} streams: {what} share of a step"
            publish([Figure(benchmark="overhead", name=name, values=list(values), unit="%", goal=promised)])


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="standin")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 8, 16])
    options = start_benchmark(parser)
    measure(subject(options.model), options.streams)


if __name__ == "__main__":
    main()
