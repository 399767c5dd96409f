"""The requests of an engine, and the step that computes their tokens.

A request is added, fetches its KV from the store or waits for a prefix that another request computes, takes part in
steps, and finishes. Idea: nano-vllm's `LLMEngine`, with `Scheduler`, `Sequence`, `KVCacheManager` (its block manager)
and `Places` (its model runner).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from engine.candidates import Logits
from engine.channel import Channel
from engine.constraint import Constraint
from engine.cost_model import Kind
from engine.drafts import Drafts
from engine.errors import DecodeError, EngineError, ModelLoadError
from engine.grammars import Compiled, Grammars
from engine.kv.cache import KVCache
from engine.kv.manager import CachedSequence
from engine.kv.places import Results
from engine.learning import LearningCostModel
from engine.llama import Context, Model
from engine.messages import (
    Discard,
    Discarded,
    Finished,
    Generate,
    PromptProgress,
    Started,
    Stepped,
    StoreUsed,
    WorkerConfig,
)
from engine.reproducible import ReproducibleRuns
from engine.runs import Run
from engine.sampler import Sampler
from engine.scheduler import Scheduler, Sequence


class EngineCore:
    """Runs the requests of one engine, and sends their messages."""

    def __init__(self, channel: Channel, model: Model, config: WorkerConfig) -> None:
        """Create the main context, and then open the store. Raises ModelLoadError."""
        self._channel = channel
        self._vocabulary = model.vocabulary
        self._grammars = Grammars(model.vocabulary, wake=channel.wake)
        self._kv = KVCache(model, config, wake=channel.wake)
        self.cells = self._kv.cells
        self._scheduler = Scheduler(LearningCostModel(config.cost_model, config.learned))
        self._reproducible = ReproducibleRuns(lambda cells: Context(model, cells=cells, sequences=1, threads=1))
        self._runs: dict[int, Run] = {}
        self._compiling: set[int] = set()
        """Requests whose grammar is being compiled."""
        self._speculates = config.speculation and self._kv.divisible  # a recurrent state can't drop tokens
        self._threads = 0
        self._moving = 0
        """Number of requests that move to another engine once their KV is stored."""

    @property
    def can_step(self) -> bool:
        """Whether `step` would compute tokens now."""
        return self._threads > 0 and len(self._scheduler) + len(self._reproducible) > 0

    @property
    def storing(self) -> bool:
        """Whether `transfer` would serialize a block now."""
        return self._kv.storing

    def set_threads(self, threads: int) -> None:
        """Use `threads` threads from the next step on; 0 pauses the engine."""
        self._threads = threads
        if threads > 0:
            self._kv.set_threads(threads)
            self._scheduler.threads = threads

    def add(self, message: Generate) -> None:
        """Start a request, or compile its grammar or fetch its KV first. Sends `Finished` if the request can't run."""
        if message.grammar is None:
            self._add(message, None)
            return
        self._compiling.add(message.request)
        self._grammars.compile(message.grammar, partial(self._compiled, message))

    def start_compiled(self) -> None:
        """Start the requests whose grammar has been compiled."""
        self._grammars.run_callbacks()

    def _compiled(self, message: Generate, result: Compiled) -> None:
        if message.request not in self._compiling:  # the request was aborted during the compilation
            return
        self._compiling.remove(message.request)
        if isinstance(result, EngineError):
            self._channel.send(Finished(message.request, "failed", str(result), result.code))
        else:
            self._add(message, result)

    def _add(self, message: Generate, constraint: Constraint | None) -> None:
        try:
            sampler = self._sampler(message, constraint)
        except EngineError as error:
            self._channel.send(Finished(message.request, "failed", str(error), error.code))
            return
        limit = len(message.tokens) + message.max_tokens
        answered = len(message.tokens) - message.generated if message.generated else None
        if message.reproducible:
            sequence = Sequence(message.request, CachedSequence(0), list(message.tokens), 0, limit, answered=answered)
            run = self._runs[message.request] = Run(message, sequence, sampler)
            self._reproducible.add(run)
            return
        resident = self._kv.acquire(message)
        if resident is None:  # a bug in the gateway: the dispatcher reserves cells before it sends a request
            self._channel.send(Finished(message.request, "failed", "no KV cells are free"))
            return
        sequence = Sequence(
            message.request, resident, list(message.tokens), len(resident.tokens), limit, answered=answered
        )
        run = self._runs[message.request] = Run(message, sequence, sampler)
        if not self._kv.fetch(message, resident, partial(self._fetched, run)):
            self._start(run)

    def _sampler(self, message: Generate, constraint: Constraint | None) -> Sampler:
        sampler = Sampler(message.sampling, top_logprobs=message.top_logprobs, constraint=constraint)
        if message.generated:
            sampler.replay(message.tokens[-message.generated :])
        return sampler

    def _fetched(self, run: Run, load: Callable[[], int]) -> None:
        if self._runs.get(run.message.request) is run:  # otherwise the request was aborted during the fetch
            run.fetched = load()
            run.sequence.computed = len(run.sequence.resident.tokens)
            self._start(run)

    def _start(self, run: Run) -> None:
        """Schedule `run`, or let it wait for another run that computes a common prefix."""
        if self._kv.divisible:
            run.choose_leader(self._runs.values())
        if run.leader is None:
            self._schedule(run)

    def start_followers(self) -> None:
        """Start the runs whose leader has computed the awaited prefix, or has ended."""
        for run, leader in [(run, run.leader) for run in self._runs.values() if run.leader is not None]:
            source = leader.sequence.resident
            if source.request == leader.message.request and len(source.tokens) >= run.awaited:
                self._kv.follow(run.sequence.resident, source, run.awaited)
                run.leader, run.sequence.computed = None, run.awaited
                self._schedule(run)
            elif leader.message.request not in self._runs:
                self._start(run)

    def _schedule(self, run: Run) -> None:
        self._kv.begin(run.message, run.sequence.resident)
        run.scheduled = True
        if self._speculates:
            run.sequence.drafts = Drafts(run.sequence.tokens)
        self._scheduler.add(run.sequence)
        self._channel.send(Started(run.message.request, run.sequence.computed, run.fetched))

    def step(self) -> None:
        """Compute some tokens of some sequences, and sample the next token of each sequence that is up to date."""
        if self._threads == 0:
            return
        if len(self._scheduler) > 0:
            self._kv.expire()  # before the step: the memory of the main context grows with the cells in use
        if self._reproducible.takes_turn(others=len(self._scheduler) > 0):
            self._reproducible_step()
            return
        started = time.perf_counter()
        step = self._scheduler.schedule(brief=self._moving > 0)
        if not step.parts:
            return
        accepted = 0
        try:
            context, rows = self._kv.compute(step)
        except DecodeError as error:
            for sequence, _ in step.parts:
                self._finish(sequence.request, "failed", str(error))
            step = replace(step, typical=False)
        else:
            for (sequence, _), row in zip(step.parts, rows, strict=True):
                accepted += self._computed(sequence, step.draft(sequence), context, row)
        seconds = time.perf_counter() - started
        self._scheduler.observe(step, seconds)
        self._channel.send(
            Stepped(
                step.rows, len(step.parts), seconds, self._kv.used, self._threads, step.kind,
                step.width if step.typical else 0, step.trial, sum(map(len, step.drafts.values())), accepted,
            ),
            urgent=False,
        )  # fmt: skip

    def _reproducible_step(self) -> None:
        """Compute some tokens of a reproducible request, and sample its next token if it is up to date."""
        started = time.perf_counter()
        sequence = self._reproducible.first.sequence
        kind: Kind = "prefill" if sequence.computed < sequence.prompt else "decode"
        try:
            if self._reproducible.begin():
                self._channel.send(Started(sequence.request, 0))
            rows, logits = self._reproducible.step()
        except (DecodeError, ModelLoadError) as error:
            self._finish(sequence.request, "failed", str(error))
            return
        if sequence.pending == 0:
            self._sample(sequence, logits)
        else:
            self._channel.send(PromptProgress(sequence.request, sequence.computed), urgent=False)
        seconds = time.perf_counter() - started
        self._channel.send(Stepped(rows, 1, seconds, self._kv.used, 1, kind), urgent=False)

    def _computed(self, sequence: Sequence, draft: list[int], context: Results, row: int) -> int:
        """Store the blocks that a step has filled, and sample the next tokens if the sequence is up to date.

        The logits after its last token are in `row`, those after each token of the draft in the next rows. Returns how
        many tokens of the draft were sampled.
        """
        try:
            self._kv.store_filled(sequence)
        except DecodeError as error:
            self._finish(sequence.request, "failed", str(error))
            return 0
        if sequence.pending > 0:
            self._channel.send(PromptProgress(sequence.request, sequence.computed), urgent=False)
            return 0
        self._sample(sequence, context.logits(row))
        right = 0
        while right < len(draft) and sequence.request in self._runs and sequence.tokens[-1] == draft[right]:
            right += 1
            self._kv.keep_draft(sequence)
            self._sample(sequence, context.logits(row + right))
        if sequence.drafts is not None:
            sequence.drafts.learn(len(draft), right)
        if draft and sequence.request in self._runs:
            self._kv.drop_draft(sequence)
        return right

    def _sample(self, sequence: Sequence, logits: Logits) -> None:
        """Sample the next token of a sequence, and finish its request where it ends."""
        run = self._runs[sequence.request]
        if sequence.computed == sequence.prompt and run.scheduled:
            self._scheduler.prefilled(sequence)
        if len(sequence.tokens) >= sequence.limit:  # `max_tokens` is 0: only the KV of the prompt was requested
            self._finish(sequence.request, "length")
            return
        sampler = run.sampler
        try:
            token = sampler.draw(logits)
        except EngineError as error:
            self._finish(sequence.request, "failed", str(error), error.code)
            return
        if self._vocabulary.ends_generation(token):
            self._finish(sequence.request, "stop")
            return
        sequence.tokens.append(token)
        self._channel.send_token(sequence.request, token, sampler.logprobs)
        if len(sequence.tokens) == sequence.prompt + 1:  # the first token: its reader waits for it
            self._channel.send_tokens(sequence.request)
        if len(sequence.tokens) >= sequence.limit:
            self._finish(sequence.request, "length")

    def end(self, request: int, reason: str) -> None:
        """Finish a request with `reason`, unless it has finished already."""
        if request in self._compiling:
            self._compiling.remove(request)
            self._channel.send(Finished(request, reason))
        elif request in self._runs:
            self._finish(request, reason)

    def _finish(self, request: int, reason: str, detail: str = "", code: str = "") -> None:
        self._channel.send_tokens(request)
        run, last = self._runs.pop(request), Finished(request, reason, detail, code)
        if run.scheduled:
            self._scheduler.remove(run.sequence)
        if run.message.reproducible:
            self._reproducible.remove(run)
            self._channel.send(last)
        elif reason == "moved":  # reported once its KV is stored
            self._moving += 1
            self._kv.release(run.sequence, moved=partial(self._moved, last))
        else:
            self._channel.send(last)
            self._kv.release(run.sequence)

    def _moved(self, last: Finished) -> None:
        self._moving -= 1
        self._channel.send(last)

    def transfer(self) -> None:
        """Continue requests whose blocks have been fetched, serialize one block for the store, and report store use."""
        used = self._kv.transfer()
        if used is not None:
            self._channel.send(StoreUsed(*used))

    def forget(self, requests: list[int]) -> None:
        """Drop the cells of ended requests that no later request can continue."""
        self._kv.forget(requests)

    def discard(self, message: Discard) -> None:
        """Drop the cells and queued blocks of a deleted response, then confirm that no block of it will be stored."""
        self._kv.discard(message, partial(self._channel.send, Discarded(message.number)))

    def close(self) -> None:
        """Write all queued blocks to the store."""
        self._kv.close()
