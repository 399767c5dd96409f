"""A child process that times steps, so that several of them can be timed at once: `python -m engine.stopwatch MODEL`.

It takes a `Question` a line on standard input and answers with a line of seconds; it leaves when its input ends.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from engine.llama import Context, Model
from engine.plan import WIDEST

CELLS: Final = 4096
HISTORY: Final = 100
"""Tokens that each decoding sequence has before it is timed: a chat's first answer."""
LEAST: Final = 3
"""Steps timed at least, however long they take."""


Kind = Literal["decode", "prefill"]


class Question(msgspec.Struct, frozen=True):
    """How long does a step of `width` take? Asked for about `budget` seconds."""

    kind: Kind
    threads: int
    width: int
    budget: float


class Stopwatch:
    """One context and the sequences in it."""

    def __init__(self, model: Model) -> None:
        """Load nothing more than `model`. Raises ModelLoadError."""
        self._context = Context(model, cells=CELLS, sequences=WIDEST * 2 + 1, threads=1)
        self._token = model.vocabulary.size // 2
        self._lengths = [0] * (WIDEST * 2)

    def time(self, question: Question) -> float:
        """Median seconds of a step."""
        self._context.set_threads(question.threads)
        step = self._decode if question.kind == "decode" else self._prefill
        step(question.width)  # brings the pages in, and the threads up
        taken: list[float] = []
        while len(taken) < LEAST or sum(taken) < question.budget:
            began = time.perf_counter()
            step(question.width)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def _decode(self, width: int) -> None:
        for sequence in range(width):
            if self._lengths[sequence] == 0:
                self._context.decode([(self._token, i, sequence, False) for i in range(HISTORY)])
                self._lengths[sequence] = HISTORY
        self._context.decode([(self._token, self._lengths[s], s, True) for s in range(width)])
        for sequence in range(width):
            self._context.cut(sequence, HISTORY)

    def _prefill(self, width: int) -> None:
        spare = WIDEST * 2
        self._context.decode([(self._token, i, spare, i == width - 1) for i in range(width)])
        self._context.cut(spare, 0)


def main(argv: list[str]) -> int:
    """Answer until the input ends."""
    stopwatch = Stopwatch(Model(Path(argv[1])))
    print("ready", flush=True)
    for line in sys.stdin:
        print(stopwatch.time(msgspec.json.decode(line, type=Question)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
