"""The cost of other sequences' cells to a step, and the saving of a separate context: the basis of engine/kv/places.py.

python -m benchmarks.crowd [--model standin] [--threads 2] [--times 9]: steps of many answers and of prompts in the
shared context and in a separate one, interleaved; the copies between them; and steps by width.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import subject
from benchmarks.machine import cores
from engine.cost_model import BATCH
from engine.llama import Context, Model, Streams

Place = Context | Streams
TOKENS: Final = range(200, 300)
EACH: Final = (0, 400, 700)
"""Cells that each of the other sequences holds."""
ANSWERS: Final = (8, 16)
DECODE: Final = (1, 2, 4, 8, 9, 12, 13, 16)
PROMPT: Final = (32, 64, 72, 128, 144, 256)
NEW: Final = 72
"""Tokens of a prompt that arrives during other answers."""


def history(model: Model, tokens: int, threads: int) -> bytes:
    """Return the serialized KV of a sequence of `tokens` tokens."""
    context = Context(model, cells=max(EACH) + BATCH, sequences=1, threads=threads)
    for start in range(0, tokens, BATCH):
        positions = range(start, min(tokens, start + BATCH))
        context.decode([(random.choice(TOKENS), p, 0, False) for p in positions])
    state = context.save(0, 0, tokens)
    context.close()
    return state


def fill(place: Place, sequences: int, state: bytes, tokens: int) -> None:
    """Replace each of the first `sequences` with a copy of a `history` of `tokens` tokens."""
    for sequence in range(sequences):
        place.cut(sequence, 0)
        if tokens and not place.load(state, sequence, 0, tokens):
            raise SystemExit("a history could not be loaded")


def decoded(place: Place, rows: int, at: int) -> float:
    """Return the milliseconds of a step that decodes one token of each of `rows` sequences of `at` tokens."""
    return timed(
        lambda: place.decode([(random.choice(TOKENS), at, sequence, True) for sequence in range(rows)]),
        then=lambda: [place.cut(sequence, at) for sequence in range(rows)],
    )


def prefilled(place: Place, sequence: int, tokens: int) -> float:
    """Return the milliseconds of a step with `tokens` prompt tokens of an empty sequence."""
    return timed(
        lambda: place.decode([(random.choice(TOKENS), p, sequence, p == tokens - 1) for p in range(tokens)]),
        then=lambda: place.cut(sequence, 0),
    )


def timed(what: Callable[[], object], then: Callable[[], object]) -> float:
    """Return the milliseconds that `what` takes; `then` restores the state and is not timed."""
    began = time.perf_counter()
    what()
    taken = time.perf_counter() - began
    then()
    return 1000 * taken


def answers(model: Model, count: int, threads: int, times: int) -> Iterator[tuple[str, list[float]]]:
    """Time steps of `count` answers in the shared cache and on seats, and the copies between the two."""
    home = Context(model, cells=count * (EACH[-1] + 1), sequences=count, threads=threads)
    apart = Streams(model, count, EACH[-1] + 2)
    apart.set_threads(threads)
    for each in EACH:
        state = history(model, each, threads)
        for place in (home, apart):
            fill(place, count, state, each)
        both = [(decoded(home, count, each), decoded(apart, count, each)) for _ in range(times)]
        together, seated = zip(*both, strict=True)
        yield f"{count} answers, {each} cells each: a step in the shared cache", list(together)
        yield f"{count} answers, {each} cells each: a step on seats", list(seated)
    apart.cut(0, 0)
    there = [
        timed(lambda: apart.load(home.save(0, 0, EACH[-1]), 0, 0, EACH[-1]), then=lambda: apart.cut(0, 0))
        for _ in range(times)
    ]
    yield f"{count} answers: copying {EACH[-1]} tokens to a seat", there
    back = []
    for _ in range(times):
        apart.load(home.save(0, 0, EACH[-1]), 0, 0, EACH[-1])
        home.cut(0, EACH[-1] - 128)
        began = time.perf_counter()
        home.load(apart.take(0, EACH[-1] - 128), 0, EACH[-1] - 128, EACH[-1])
        back.append(1000 * (time.perf_counter() - began))
    yield f"{count} answers: copying 128 new tokens back", back
    apart.close()
    home.close()


def widths(model: Model, threads: int, times: int) -> Iterator[tuple[str, list[float]]]:
    """Time steps by width, without cells of other sequences."""
    place = Context(model, cells=1024, sequences=ANSWERS[-1], threads=threads)
    kinds = [(rows, True) for rows in DECODE] + [(rows, False) for rows in PROMPT]
    taken: dict[tuple[int, bool], list[float]] = {kind: [] for kind in kinds}
    for _, (rows, answer) in itertools.product(range(times), kinds):
        taken[rows, answer].append(decoded(place, rows, 0) if answer else prefilled(place, 0, rows))
    for (rows, answer), values in taken.items():
        yield f"a step of {rows} {'answers' if answer else 'tokens of a prompt'}", values
    place.close()


def prompts(model: Model, threads: int, times: int) -> Iterator[tuple[str, list[float]]]:
    """Time a prompt step among the cells of sixteen other sequences, and in a separate context."""
    count, each = ANSWERS[-1], EACH[1]
    home = Context(model, cells=count * each + BATCH, sequences=count + 1, threads=threads)
    annex = Context(model, cells=1024, sequences=1, threads=threads)
    fill(home, count, history(model, each, threads), each)
    both = [(prefilled(home, count, NEW), prefilled(annex, 0, NEW)) for _ in range(times)]
    among, apart = zip(*both, strict=True)
    yield f"{NEW} tokens of a prompt, among {count * each} cells of other sequences", list(among)
    yield f"{NEW} tokens of a prompt, in a separate context", list(apart)
    annex.close()
    home.close()


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="standin")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--times", type=int, default=9)
    options = start_benchmark(parser)
    model = Model(subject(options.model).path)
    rest = options.threads, options.times
    parts = [answers(model, count, *rest) for count in ANSWERS]
    for name, values in itertools.chain(*parts, prompts(model, *rest), widths(model, *rest)):
        publish([Figure(benchmark="crowd", name=f"{options.model}: {name}", values=values, unit="ms")])


if __name__ == "__main__":
    main()
