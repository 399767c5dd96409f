"""Python's share of an engine's step: what is spent neither inside llama.cpp nor on drawing a token.

python -m benchmarks.overhead [--model standin] [--streams 1 2 8 16]: the engine's own loop, in this process, with every
call of llama.cpp and of the sampler timed, over steps that only decode. The engine has the cells that `samovar serve`
gives it, and from eight streams on the prompts are long enough that answers are decoded on seats.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable
from typing import Any, Final
from unittest import mock

import llama_cpp

from benchmarks.bare import GREEDY
from benchmarks.figures import Figure, publish
from benchmarks.loads import MODELS, Subject, subject
from benchmarks.loop import configuration, serve
from benchmarks.machine import cores, machine
from engine import Finished, Generate, Model, WorkerConfig
from engine.candidates import Logits
from engine.messages import Frames, SetThreads, frame, from_engine_decoder
from engine.sampler import Sampler

ROUNDS: Final = 5
STEPS: Final = 60
"""Decode steps of a round that are looked at."""
MARGIN: Final = 40
"""Tokens of an answer before and after them, while others are still at their prompts or have ended."""
PROMPT_TOKENS: Final = 200
"""Of each stream: eight or sixteen of them walk more of each other's cells than seats cost (engine/seats.py)."""
SEATED: Final = 8
"""Streams from which all of them have seats."""
GOAL: Final = 3.0


class Clocked:
    """llama_cpp with a clock around every function."""

    def __init__(self, module: Any) -> None:
        """Stand in for `module`."""
        self._module = module
        self._inside = self._drawing = 0.0
        self.steps: list[tuple[float, float, float]] = []
        """At the start of each step: the time, and the seconds so far inside llama.cpp and on drawing."""
        self.contexts: list[object] = []
        """Of each step, the one that it is computed in."""

    def __getattr__(self, name: str) -> Any:
        """The module's attribute, clocked where it is a function; kept, so that the next look-up is fast."""
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
        """In place of Sampler.draw."""
        began, inside = time.perf_counter(), self._inside
        token = _draw(sampler, logits)
        # A grammar asks llama.cpp: that is counted there.
        self._drawing += time.perf_counter() - began - (self._inside - inside)
        return token


_draw = Sampler.draw


def converse(far: socket.socket, streams: int, tokens: int) -> None:
    """The gateway's part: ask, wait for all to end, leave. It looks seldom, to leave the interpreter to the engine."""
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
    """Percent of decode steps' time (neither inside llama.cpp nor on drawing, on drawing)."""
    clocked = Clocked(llama_cpp)
    draw = mock.patch.object(Sampler, "draw", lambda sampler, logits: clocked.draw(sampler, logits))
    with draw, mock.patch("engine.llama.llama_cpp", clocked):
        serve(model, config, lambda far: converse(far, streams, STEPS + MARGIN))
    # At the very end some have ended already, who began first.
    end = -2 * streams - 2
    if streams >= SEATED and clocked.contexts[0] in clocked.contexts[end - STEPS : end]:
        raise SystemExit(f"{streams} streams were not decoded on seats")
    first, last = clocked.steps[end - STEPS], clocked.steps[end]
    whole, inside, drawing = (later - earlier for earlier, later in zip(first, last, strict=True))
    return 100 * (whole - inside - drawing) / whole, 100 * drawing / whole


def measure(subject: Subject, streams: list[int]) -> None:
    """Tell the shares by number of streams."""
    model, config = Model(subject.path), configuration(subject.path)
    for count in streams:
        python, drawing = zip(*(shares(model, config, count) for _ in range(ROUNDS)), strict=True)
        goal = GOAL if subject.name == "standin" else None
        for what, values, promised in (("Python's", python, goal), ("the sampler's", drawing, None)):
            name = f"{subject.name}, {count} streams: {what} share of a step"
            publish([Figure(benchmark="overhead", name=name, values=list(values), unit="%", goal=promised)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="standin")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 8, 16])
    options = parser.parse_args()
    print(machine())
    measure(subject(options.model), options.streams)


if __name__ == "__main__":
    main()
