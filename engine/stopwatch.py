"""A child process that times steps, so that several processes can be timed at once: `python -m engine.stopwatch MODEL`.

It reads one `Question` per line from stdin, replies with a line of seconds, and exits when its input ends.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from engine.cost_model import WIDEST, Kind
from engine.llama import Context, Model

CELLS: Final = 2048
"""KV cells of the context."""
HISTORY: Final = 100
"""Tokens of each sequence before a timed decode step, as in the first turn of a chat."""


class Question(msgspec.Struct, frozen=True):
    """A request to time steps of `width` tokens for about `budget` seconds."""

    kind: Kind
    threads: int
    width: int
    """Sequences of a decode step, or tokens of a prefill step."""
    budget: float


def timed(step: Callable[[], object], budget: float, clock: Callable[[], float]) -> float:
    """Repeat `step` for about `budget` seconds, and return the median of its seconds. Runs it at least once.

    The first run also reads pages and starts threads. It counts only if the budget allows no second run: the step then
    takes so long that the overhead is small.
    """
    began = clock()
    step()
    now = clock()
    taken = [now - began]
    while now - began < budget:
        before = now
        step()
        now = clock()
        taken.append(now - before)
    return statistics.median(taken[1:] or taken)


class Stopwatch:
    """Times steps in one context."""

    def __init__(self, model: Model) -> None:
        """Create the context. Raises ModelLoadError."""
        self._context = Context(model, cells=CELLS, sequences=WIDEST + 1, threads=1)
        self._token = model.vocabulary.size // 2
        self._history = b""
        self._filled: set[int] = set()

    def time(self, question: Question) -> float:
        """Return the median seconds of a step. Raises DecodeError."""
        width = question.width
        self._context.set_threads(question.threads)
        self._fill(width if question.kind == "decode" else 0)
        step = self._decode if question.kind == "decode" else self._prefill
        return timed(lambda: step(width), question.budget, time.perf_counter)

    def _fill(self, sequences: int) -> None:
        """Give the first `sequences` sequences a history, and empty the others, whose cells a step would visit too."""
        for sequence in self._filled - set(range(sequences)):
            self._context.cut(sequence, 0)
        for sequence in set(range(sequences)) - self._filled:
            # Computed once, then copied: computing it for each sequence took as long as all measurements together.
            if not self._history or not self._context.load(self._history, sequence, 0, HISTORY):
                self._context.decode([(self._token, i, sequence, False) for i in range(HISTORY)])
                self._history = self._context.save(sequence, 0, HISTORY)
        self._filled = set(range(sequences))

    def _decode(self, width: int) -> None:
        self._context.decode([(self._token, HISTORY, s, True) for s in range(width)])
        for sequence in range(width):
            self._context.cut(sequence, HISTORY)

    def _prefill(self, width: int) -> None:
        self._context.decode([(self._token, i, WIDEST, i == width - 1) for i in range(width)])
        self._context.cut(WIDEST, 0)


def main(argv: list[str]) -> int:
    """Answer questions until the input ends."""
    stopwatch = Stopwatch(Model(Path(argv[1])))
    print("ready", flush=True)
    for line in sys.stdin:
        print(stopwatch.time(msgspec.json.decode(line, type=Question)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
