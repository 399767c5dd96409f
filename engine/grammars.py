"""Compilation of grammars in a thread, so that no step of other requests waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread, stack_size

from engine.constraint import GRAMMAR_STACK, Compiler, Constraint
from engine.errors import EngineError, GrammarError
from engine.llama import Vocabulary
from engine.messages import Grammar

Compiled = Constraint | EngineError
"""The result of a compilation."""


class Grammars:
    """Compiles the grammars of an engine's requests.

    The thread first builds the tokenizer, which takes 0.8 CPU seconds for 152 000 tokens, while the engine computes its
    first prompt. It is a daemon thread: a compilation does not delay the engine's exit.
    """

    def __init__(self, vocabulary: Vocabulary, *, wake: Callable[[], None]) -> None:
        """Start the thread, which calls `wake` so that the loop calls `run_callbacks`."""
        self._vocabulary = vocabulary
        self._wake = wake
        self._compiler: Future[Compiler] = Future()
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._callbacks: deque[Callable[[], None]] = deque()
        default = stack_size(GRAMMAR_STACK)
        Thread(target=self._run, name="grammars", daemon=True).start()
        stack_size(default)

    def compile(self, grammar: Grammar, done: Callable[[Compiled], None]) -> None:
        """Compile `grammar`. The loop then calls `done` with the constraint of a new answer, or with an error."""

        def compile_() -> None:
            try:
                result: Compiled = self._compiler.result().constraint(grammar)
            except EngineError as error:
                result = error
            except Exception as error:  # noqa: BLE001 - such as MemoryError: the waiting request must end
                result = GrammarError(f"the grammar or schema cannot be compiled: {type(error).__name__}")
            self._callbacks.append(lambda: done(result))
            self._wake()

        self._jobs.put(compile_)

    def run_callbacks(self) -> None:
        """Call `done` of all compilations that have ended."""
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()

    def _run(self) -> None:
        try:
            self._compiler.set_result(Compiler(self._vocabulary))
        except Exception as error:  # noqa: BLE001 - each compilation reports it
            self._compiler.set_exception(error)
        while True:
            self._jobs.get()()
