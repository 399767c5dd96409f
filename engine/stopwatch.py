"""A child process that times steps, so that several of them can be timed at once: `python -m engine.stopwatch MODEL`.

It takes a `Question` a line on standard input and answers with a line of seconds; it leaves when its input ends.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from engine.cost_model import WIDEST
from engine.llama import Context, Model

CELLS: Final = 2048
HISTORY: Final = 100
"""Tokens that each decoding sequence has before it is timed: a chat's first answer."""


Kind = Literal["decode", "prefill"]


class Question(msgspec.Struct, frozen=True):
    """How long does a step of `width` take? Asked for about `budget` seconds."""

    kind: Kind
    threads: int
    width: int
    budget: float


def timed(step: Callable[[], object], budget: float, clock: Callable[[], float]) -> float:
    """Median seconds of a `step` that is repeated for about `budget`: no more than its first beyond it, once.

    The first brings pages in and threads up, and counts only where there is no time for another: it is a long one then,
    of which that is a small part.
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
    """One context and the sequences in it."""

    def __init__(self, model: Model) -> None:
        """Load nothing more than `model`. Raises ModelLoadError."""
        self._context = Context(model, cells=CELLS, sequences=WIDEST + 1, threads=1)
        self._token = model.vocabulary.size // 2
        self._history = b""
        self._filled: set[int] = set()

    def time(self, question: Question) -> float:
        """Median seconds of a step. Raises DecodeError."""
        width = question.width
        self._context.set_threads(question.threads)
        self._fill(width if question.kind == "decode" else 0)
        step = self._decode if question.kind == "decode" else self._prefill
        return timed(lambda: step(width), question.budget, time.perf_counter)

    def _fill(self, sequences: int) -> None:
        """Let so many have their history and the others none, whose cells a step would walk too."""
        for sequence in self._filled - set(range(sequences)):
            self._context.cut(sequence, 0)
        for sequence in set(range(sequences)) - self._filled:
            # Computed once, then copied: to compute it for everybody took as long as all that is timed.
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
    """Answer until the input ends."""
    stopwatch = Stopwatch(Model(Path(argv[1])))
    print("ready", flush=True)
    for line in sys.stdin:
        print(stopwatch.time(msgspec.json.decode(line, type=Question)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
