"""The requests of an engine, and the step that computes their tokens.

A request is added, fetches its KV from the store or waits for a prefix that another request computes, takes part in
steps, and finishes. Idea: nano-vllm's `LLMEngine`, with `Scheduler`, `Sequence`, `KVCacheManager` (its block manager)
and `Places` (its model runner).
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from cache import Operation, PrefixCache, Stored, StoreError
from engine.candidates import Logits
from engine.channel import Channel
from engine.constraint import Constraint
from engine.cost_model import Kind
from engine.errors import DecodeError, EngineError, ModelLoadError
from engine.grammars import Compiled, Grammars
from engine.kv_cache_manager import CachedSequence, KVCacheManager
from engine.kv_connector import KVConnector
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
from engine.places import Places
from engine.reproducible import ReproducibleRuns
from engine.runs import Run
from engine.sampler import Sampler
from engine.scheduler import Scheduler, Sequence

MIN_FETCH: Final = 16
"""Minimum missing tokens of a prompt for a fetch from the store: computing fewer takes less time than the fetch."""
MIN_RETENTION: Final = 1.0
"""Minimum retention of an ended request's cells in seconds, so that an immediate follow-up skips the store."""
RETENTION: Final = 5.0
"""Retention of an ended and stored request's cells in seconds while others run. 1 000 idle cells slow the steps of the
others by about 2 %; fetching them again takes 20 ms, once."""


class EngineCore:
    """Runs the requests of one engine, and sends their messages."""

    def __init__(self, channel: Channel, model: Model, config: WorkerConfig) -> None:
        """Create the main context, and then open the store. Raises ModelLoadError."""
        self._channel = channel
        self._vocabulary = model.vocabulary
        self._grammars = Grammars(model.vocabulary, wake=channel.wake)
        self._places = Places(model, cells=config.cells, sequences=config.sequences)
        home, self.cells = self._places.home, self._places.cells
        self._idle_cells = config.idle_cells
        self._operations: deque[Operation] = deque()
        self._cache = self._open_cache(config) if model.has_blocks else None
        self._connector = None if self._cache is None else KVConnector(home, self._cache, wake=channel.wake)
        self._kv_cache = KVCacheManager(
            home, cells=self.cells, sequences=config.sequences, divisible=model.has_blocks, on_loss=self._before_loss
        )
        self._scheduler = Scheduler(LearningCostModel(config.cost_model, config.learned))
        self._reproducible = ReproducibleRuns(lambda cells: Context(model, cells=cells, sequences=1, threads=1))
        self._runs: dict[int, Run] = {}
        self._compiling: set[int] = set()
        """Requests whose grammar is being compiled."""
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
        return self._connector is not None and self._connector.has_work

    def set_threads(self, threads: int) -> None:
        """Use `threads` threads from the next step on; 0 pauses the engine."""
        self._threads = threads
        if threads > 0:
            self._places.set_threads(threads)
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
        resident = self._kv_cache.acquire(message.request, message.tokens, message.scope, limit, public=message.public)
        if resident is None:  # a bug in the gateway: the dispatcher reserves cells before it sends a request
            self._channel.send(Finished(message.request, "failed", "no KV cells are free"))
            return
        sequence = Sequence(
            message.request, resident, list(message.tokens), len(resident.tokens), limit, answered=answered
        )
        run = self._runs[message.request] = Run(message, sequence, sampler)
        missing = len(message.tokens) - 1 - sequence.computed
        # Generated tokens are recomputed a few per step (RECOMPUTE_ROWS), so fetching even one of them saves time.
        minimum = 1 if message.generated else MIN_FETCH
        if self._connector is None or not message.stored or missing < minimum:
            self._start(run)
            return
        # The last token is always computed: its logits are needed, and blocks hold no logits.
        chain = self._connector.chain(message.tokens[:-1], message.scope, message.public)
        self._connector.fetch(chain, sequence.computed, lambda blocks: self._fetched(run, blocks))

    def _sampler(self, message: Generate, constraint: Constraint | None) -> Sampler:
        sampler = Sampler(message.sampling, top_logprobs=message.top_logprobs, constraint=constraint)
        if message.generated:
            sampler.replay(message.tokens[-message.generated :])
        return sampler

    def _fetched(self, run: Run, blocks: list[Stored]) -> None:
        if self._runs.get(run.message.request) is not run or self._connector is None:
            return  # the request was aborted during the fetch
        before = run.sequence.computed
        run.sequence.computed = self._connector.load(run.sequence.resident, blocks, run.message.tokens)
        run.fetched = max(0, run.sequence.computed - before)
        self._start(run)

    def _start(self, run: Run) -> None:
        """Schedule `run`, or let it wait for another run that computes a common prefix."""
        if self._kv_cache.divisible:
            run.choose_leader(self._runs.values())
        if run.leader is None:
            self._schedule(run)

    def start_followers(self) -> None:
        """Start the runs whose leader has computed the awaited prefix, or has ended."""
        for run, leader in [(run, run.leader) for run in self._runs.values() if run.leader is not None]:
            source = leader.sequence.resident
            if source.request == leader.message.request and len(source.tokens) >= run.awaited:
                self._kv_cache.follow(run.sequence.resident, source, run.awaited)
                run.leader, run.sequence.computed = None, run.awaited
                self._schedule(run)
            elif leader.message.request not in self._runs:
                self._start(run)

    def _schedule(self, run: Run) -> None:
        if run.message.stored and self._connector is not None:
            # From here on the tokens in the cells only grow, and the chain grows with them.
            run.chain = self._connector.chain(run.sequence.resident.tokens, run.message.scope, run.message.public)
        run.scheduled = True
        self._scheduler.add(run.sequence)
        self._channel.send(Started(run.message.request, run.sequence.computed, run.fetched))

    def step(self) -> None:
        """Compute some tokens of some sequences, and sample the next token of each sequence that is up to date."""
        if self._threads == 0:
            return
        self._expire()  # before the step: the memory of the main context grows with the cells in use
        if self._reproducible.takes_turn(others=len(self._scheduler) > 0):
            self._reproducible_step()
            return
        started = time.perf_counter()
        step = self._scheduler.schedule(brief=self._moving > 0)
        if not step.parts:
            return
        try:
            context, rows = self._places.compute(step, used=self._kv_cache.used)
        except DecodeError as error:
            for sequence, _ in step.parts:
                self._finish(sequence.request, "failed", str(error))
            step = replace(step, typical=False)
        else:
            for (sequence, _), row in zip(step.parts, rows, strict=True):
                if not self._store_filled_blocks(sequence):
                    continue
                if sequence.pending == 0:
                    self._sample(sequence, context.logits(row))
                else:
                    self._channel.send(PromptProgress(sequence.request, sequence.computed), urgent=False)
        seconds = time.perf_counter() - started
        self._scheduler.observe(step, seconds)
        self._channel.send(
            Stepped(
                step.rows, len(step.parts), seconds, self._kv_cache.used, self._threads, step.kind,
                step.width if step.typical else 0, step.trial,
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
        self._channel.send(Stepped(rows, 1, seconds, self._kv_cache.used, 1, kind), urgent=False)

    def _store_filled_blocks(self, sequence: Sequence) -> bool:
        """Queue the blocks that a running sequence has filled for the store. Returns False if its request failed."""
        chain = self._runs[sequence.request].chain
        if chain is not None and self._connector is not None and sequence.computed >= chain.due:
            try:
                self._places.write_home(sequence)
            except DecodeError as error:
                self._finish(sequence.request, "failed", str(error))
                return False
            full = chain.extend(sequence.resident.tokens[len(chain.tokens) :])
            self._connector.store(sequence.resident, chain, full)
        return True

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
        run = self._runs.pop(request)
        resident = run.sequence.resident
        if run.scheduled:
            self._scheduler.remove(run.sequence)
        if run.message.reproducible:
            self._reproducible.remove(run)
        else:
            self._places.leave(run.sequence)
            self._kv_cache.release(resident)
        last = Finished(request, reason, detail, code)
        if run.chain is None or self._connector is None:
            self._channel.send(last)
            return
        # Store everything that was computed, including the unfilled last block. `moved` is reported once it is stored.
        run.chain.extend(resident.tokens[len(run.chain.tokens) :])
        if reason == "moved":
            self._moving += 1
            self._connector.store(resident, run.chain, run.chain.blocks, done=lambda _: self._moved(last))
            self._connector.drain()
        else:
            self._channel.send(last)
            done = partial(resident.note_stored, list(resident.tokens))
            self._connector.store(resident, run.chain, run.chain.blocks, done=done)

    def _moved(self, last: Finished) -> None:
        self._moving -= 1
        self._channel.send(last)

    def transfer(self) -> None:
        """Continue requests whose blocks have been fetched, serialize one block for the store, and report store use."""
        if self._connector is None or self._cache is None:
            return
        self._connector.run_callbacks()
        self._connector.step()
        if self._operations:
            operations = [self._operations.popleft() for _ in range(len(self._operations))]
            self._channel.send(StoreUsed(operations, self._cache.up))

    def forget(self, requests: list[int]) -> None:
        """Drop the cells of ended requests that no later request can continue."""
        self._kv_cache.forget(requests)

    def discard(self, message: Discard) -> None:
        """Drop the cells and queued blocks of a deleted response, then confirm that no block of it will be stored."""
        confirm = partial(self._channel.send, Discarded(message.number))
        if self._connector is None:
            confirm()
        else:  # before its cells are cut: other blocks in them may still have to be written
            chain = self._connector.chain(message.tokens, message.scope, message.public)
            self._connector.discard(chain, message.start, confirm)
        self._kv_cache.discard(message.tokens, message.scope, message.start)

    def close(self) -> None:
        """Write all queued blocks to the store."""
        if self._connector is not None:
            self._connector.close()

    def _open_cache(self, config: WorkerConfig) -> PrefixCache | None:
        if config.cache is not None:
            with suppress(StoreError):  # the gateway opened the same store and reported the error
                return config.cache.open(config.build, self._operations.append)
        return None

    def _expire(self) -> None:
        """Evict the cells of ended requests while others run, because idle cells slow every step down."""
        if len(self._scheduler) > 0 and self._cache is not None and self._cache.writable:  # or their KV would be lost
            self._kv_cache.trim(self._idle_cells, MIN_RETENTION)
            self._kv_cache.expire(RETENTION)

    def _before_loss(self, resident: CachedSequence) -> None:
        if self._connector is not None:
            self._connector.flush(resident)
