"""The cost of output constraints: token masks against steps, for JSON with ten fields and free text with tools.

python -m benchmarks.masks [MODEL.gguf], by default the embedded model: for one and for four answers side by side, the
summed time of masks and tests of tokens, the summed time of steps, and their ratio. The model must be a real one, since
a random model writes other text.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from benchmarks.figures import Figure, publish
from benchmarks.machine import embedded, machine
from engine import Grammar, Model, Sampling
from engine.constraint import Compiler, Constraint
from engine.llama import Context
from engine.sampler import Sampler
from gateway.prompts.constraints import form
from gateway.protocol.tools import ErrorPaths, FunctionTool, JsonSchema, OutputConstraint, TextFormat

STREAMS: Final = (1, 4)
ROUNDS: Final = 3
MAX_TOKENS: Final = 250
THREADS: Final = 1
PROMPT: Final = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
KINDS: Final[tuple[dict[str, Any], ...]] = (
    {"type": "string", "maxLength": 60},
    {"type": "integer", "minimum": 0, "maximum": 5000},
    {"enum": ["low", "medium", "high"]},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
)
NAMES: Final = ("name", "rooms", "price", "breakfast", "tags", "city", "floors", "noise", "pool", "rules")
SCHEMA: Final = {
    "type": "object",
    "properties": {name: KINDS[i % len(KINDS)] for i, name in enumerate(NAMES)},
    "required": list(NAMES),
    "additionalProperties": False,
}
TOOLS: Final = [FunctionTool(name=f"book_{name}", parameters=SCHEMA) for name in NAMES]

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A kind of answer."""

    name: str
    question: str
    constraint: OutputConstraint


TASKS: Final = (
    Task(
        "ten fields",
        "Invent a hotel, as JSON.",
        form([], "auto", JsonSchema(name="hotel", schema=SCHEMA), ErrorPaths()),
    ),
    Task(
        "free text with ten tools",
        "Tell a long story about a hotel.",
        form(TOOLS, "auto", TextFormat(), ErrorPaths()),
    ),
)


@dataclass
class Timed(Constraint):
    """A constraint that measures itself."""

    inner: Constraint
    seconds: list[float] = field(default_factory=list)

    def allows(self, token: int) -> bool:
        """Test one token."""
        return self._measured(lambda: self.inner.allows(token))

    def allowed(self) -> Any:
        """Compute the mask."""
        return self._measured(self.inner.allowed)

    def accept(self, token: int) -> None:
        """Advance."""
        self._measured(lambda: self.inner.accept(token))

    def _measured(self, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds.append(time.perf_counter() - started)


def answers(model: Model, compiler: Compiler, task: Task, streams: int, seed: int) -> tuple[float, float, int]:
    """Generate `streams` answers side by side; return the seconds of constraints and of steps, and the tokens."""
    vocabulary = model.vocabulary
    grammar = Grammar(task.constraint.grammar or "", task.constraint.controls)
    constraints = [Timed(compiler.constraint(grammar)) for _ in range(streams)]
    samplers = [
        Sampler(Sampling(temperature=0.7, top_p=0.8, top_k=20, seed=seed * 100 + i), constraint=constraint)
        for i, constraint in enumerate(constraints)
    ]
    prompt = vocabulary.tokenize(PROMPT.format(task.question), special=True)
    context = Context(model, cells=streams * (len(prompt) + MAX_TOKENS + 8), sequences=streams, threads=THREADS)
    for i in range(streams):
        context.decode([(token, at, i, False) for at, token in enumerate(prompt[:-1])])
    last, position, running = dict.fromkeys(range(streams), prompt[-1]), len(prompt) - 1, list(range(streams))
    spent, count = 0.0, 0
    while running and position < len(prompt) + MAX_TOKENS:
        started = time.perf_counter()
        context.decode([(last[i], position, i, True) for i in running])
        spent += time.perf_counter() - started
        for row, i in enumerate(list(running)):
            last[i] = samplers[i].draw(context.logits(row))
            count += 1
            if vocabulary.ends_generation(last[i]):
                running.remove(i)
        position += 1
    context.close()
    return sum(sum(constraint.seconds) for constraint in constraints), spent, count


def figures(path: Path) -> Iterator[Figure]:
    """Yield the figures of each task and number of streams."""
    model = Model(path)
    compiler = Compiler(model.vocabulary)
    for task, streams in itertools.product(TASKS, STREAMS):
        runs = [answers(model, compiler, task, streams, seed) for seed in range(ROUNDS)]
        name = f"{path.stem}, {streams} answer{'s' if streams > 1 else ''} of {task.name}"
        shares = [masks / steps * 100 for masks, steps, _ in runs]
        yield Figure(benchmark="masks", name=f"{name}: masks", values=[run[0] * 1e3 for run in runs], unit="ms")
        yield Figure(benchmark="masks", name=f"{name}: steps", values=[run[1] * 1e3 for run in runs], unit="ms")
        yield Figure(benchmark="masks", name=f"{name}: tokens", values=[float(run[2]) for run in runs], unit="")
        yield Figure(benchmark="masks", name=f"{name}: masks over steps", values=shares, unit="%")


def main() -> None:
    """Measure and print."""
    print(f"{machine()}, {THREADS} threads, {ROUNDS} rounds")
    publish(list(figures(Path(sys.argv[1]) if len(sys.argv) > 1 else embedded())))


if __name__ == "__main__":
    main()
