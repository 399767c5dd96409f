"""The engine process: receive messages, run steps, send tokens, until the gateway closes its end of the socket pair.

The pool starts it as `python -m engine.worker FD`. It exits when the socket closes, so engines also end when their
gateway is killed with SIGKILL: the next read returns end of file.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Final

from cache import Operation, PrefixCache, Stored, StoreError
from engine.candidates import Logits
from engine.channel import Channel
from engine.constraint import Grammars
from engine.errors import DecodeError, EngineError
from engine.kv_cache_manager import CachedSequence, KVCacheManager, common_prefix
from engine.kv_connector import KVConnector
from engine.llama import Model
from engine.messages import (
    Abort,
    Discard,
    Discarded,
    Finished,
    Forget,
    Generate,
    LoadFailed,
    Logprob,
    Ready,
    SetThreads,
    Started,
    Stepped,
    StoreUsed,
    Suspend,
    ThreadsSet,
    ToEngine,
    Tokens,
    WorkerConfig,
)
from engine.modelfile import require_same
from engine.places import Computed, Places
from engine.runs import Run
from engine.sampler import Sampler
from engine.scheduler import Scheduler, Sequence, Step

MIN_FETCH: Final = 16
"""Minimum missing tokens of a prompt for a fetch from the store: computing fewer takes less time than the fetch."""
MIN_AWAIT: Final = 64
"""Minimum tokens that waiting for another run must save: computing fewer is as fast as waiting."""
MIN_RETENTION: Final = 1.0
"""Minimum retention of an ended request's cells in seconds, so that an immediate follow-up skips the store."""
RETENTION: Final = 5.0
"""Retention of an ended and stored request's cells in seconds while others run. 1 000 idle cells slow the steps of the
others by about 2 %; fetching them again takes 20 ms, once."""
FLUSH_INTERVAL: Final = 0.04
"""Seconds over which tokens are collected into one message. 25 updates a second look continuous, and each message costs
the gateway processor time that the engines then lack."""


class Worker:
    """The step loop of one engine."""

    def __init__(self, channel: Channel, model: Model, config: WorkerConfig) -> None:
        """Create the main context. Raises ModelLoadError."""
        self._channel = channel
        self._vocabulary = model.vocabulary
        self._grammars = Grammars(model.vocabulary)
        self._places = Places(model, cells=config.cells, sequences=config.sequences)
        home, self.cells = self._places.home, self._places.cells
        self._idle_cells = config.idle_cells
        self._operations: deque[Operation] = deque()
        self._cache: PrefixCache | None = None
        self._connector: KVConnector | None = None
        if config.cache is not None and model.has_blocks:
            self._open_cache(config)
        self._residents = KVCacheManager(
            home, cells=self.cells, sequences=config.sequences, divisible=model.has_blocks, on_loss=self._before_loss
        )
        self._scheduler = Scheduler(config.cost_model)
        self._runs: dict[int, Run] = {}
        self._threads = 0
        self._moving = 0
        """Number of requests that move to another engine once their KV is stored."""
        self._unsent: dict[int, Tokens] = {}
        """Collected tokens, by request."""
        self._flushed_at = 0.0
        """Time of the last flush, in monotonic seconds."""

    def run(self) -> None:
        """Serve until the gateway closes the socket. Raises EOFError then."""
        while True:
            self._start_followers()
            can_step = self._can_step
            storing = self._connector is not None and self._connector.has_work
            for message in self._channel.receive(wait=not can_step and not storing):
                self._handle(message)
            if self._connector is not None:
                self._connector.run_callbacks()
                self._connector.step()
                self._report_store_use()
            self._expire()  # before the step: the memory of the main context grows with the cells in use
            if self._channel.urgent:  # before the step: a prefill step is long
                self._channel.flush()
            if self._threads > 0:
                self._step()
            self._flush()

    def _expire(self) -> None:
        """Evict the cells of ended requests while others run, because idle cells slow every step down."""
        if len(self._scheduler) > 0 and self._cache is not None and self._cache.writable:  # or their KV would be lost
            self._residents.trim(self._idle_cells, MIN_RETENTION)
            self._residents.expire(RETENTION)

    @property
    def _can_step(self) -> bool:
        return self._threads > 0 and len(self._scheduler) > 0

    def _flush(self) -> None:
        """Send the queued messages, but tokens at most every FLUSH_INTERVAL seconds."""
        now = time.monotonic()
        if now - self._flushed_at >= FLUSH_INTERVAL or not self._can_step:
            for request in list(self._unsent):
                self._send_tokens(request)
            self._channel.urgent = True
        if self._channel.urgent:
            self._channel.flush()
            self._flushed_at = now

    def _send_tokens(self, request: int) -> None:
        """Queue the collected tokens of a request for sending."""
        drawn = self._unsent.pop(request, None)
        if drawn is not None:
            self._channel.send(drawn)

    def close(self) -> None:
        """Write all queued blocks to the store."""
        if self._connector is not None:
            self._connector.close()

    def _open_cache(self, config: WorkerConfig) -> None:
        assert config.cache is not None  # noqa: S101 - for the type checker
        try:
            self._cache = config.cache.open(config.build, self._operations.append)
        except StoreError:  # the gateway opened the same store and reported the error
            return
        self._connector = KVConnector(self._places.home, self._cache, wake=self._channel.wake)

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Generate():
                self._admit(message)
            case Abort(request=request):
                if request in self._runs:
                    self._finish(request, "aborted")
            case Suspend(request=request):
                if request in self._runs:
                    self._finish(request, "moved")
            case Forget(requests=requests):
                self._residents.forget(requests)
            case Discard():
                self._discard(message)
            case SetThreads(threads=threads):
                self._threads = threads
                if threads > 0:
                    self._places.set_threads(threads)
                    self._scheduler.threads = threads
                self._channel.send(ThreadsSet(threads))

    def _discard(self, message: Discard) -> None:
        """Drop the cells and queued blocks of a deleted response, then confirm that no block of it will be stored."""
        confirm = partial(self._channel.send, Discarded(message.number))
        if self._connector is None:
            confirm()
        else:  # before its cells are cut: other blocks in them may still have to be written
            chain = self._connector.chain(message.tokens, message.scope, message.public)
            self._connector.discard(chain, message.start, confirm)
        self._residents.discard(message.tokens, message.scope, message.start)

    def _admit(self, message: Generate) -> None:
        try:
            sampler = self._sampler(message)
        except EngineError as error:
            self._channel.send(Finished(message.request, "failed", str(error), error.code))
            return
        limit = len(message.tokens) + message.max_tokens
        resident = self._residents.acquire(message.request, message.tokens, message.scope, limit, public=message.public)
        if resident is None:  # a bug in the gateway: the dispatcher reserves cells before it sends a request
            sampler.close()
            self._channel.send(Finished(message.request, "failed", "no KV cells are free"))
            return
        answered = len(message.tokens) - message.generated if message.generated else None
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

    def _sampler(self, message: Generate) -> Sampler:
        constraint = self._grammars.constraint(message.grammar)
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
        run.leader, run.awaited = self._leader(run)
        if run.leader is None:
            self._schedule(run)

    def _leader(self, run: Run) -> tuple[Run | None, int]:
        """Return the run that computes, or has computed, the longest prefix common with `run`, and the prefix's length.

        Returns None for the run if no prefix saves MIN_AWAIT tokens.
        """
        tokens, scope, public = run.message.tokens, run.message.scope, run.message.public
        best, length = None, run.sequence.computed + MIN_AWAIT
        for other in self._runs.values():
            within = len(tokens) - 1 if other.message.scope == scope else min(public, other.message.public)
            most = min(within, other.sequence.prompt)
            if other.scheduled and most >= length and self._residents.divisible:
                common = min(most, common_prefix(other.sequence.tokens, tokens))
                if common >= length:
                    best, length = other, common
        return best, length

    def _start_followers(self) -> None:
        """Start the runs whose leader has computed the awaited prefix, or has ended."""
        for run, leader in [(run, run.leader) for run in self._runs.values() if run.leader is not None]:
            source = leader.sequence.resident
            if source.request == leader.message.request and len(source.tokens) >= run.awaited:
                self._residents.follow(run.sequence.resident, source, run.awaited)
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

    def _step(self) -> None:
        started = time.perf_counter()
        step = self._scheduler.schedule(brief=self._moving > 0)
        if not step.parts:
            return
        computed = self._compute(step)
        if computed is not None:
            for (sequence, _), row in zip(step.parts, computed.rows, strict=True):
                try:
                    self._store_filled_blocks(sequence)
                except DecodeError as error:
                    self._finish(sequence.request, "failed", str(error))
                    continue
                if sequence.pending == 0:
                    self._advance(sequence, computed.context.logits(row))
        seconds = time.perf_counter() - started
        self._channel.send(Stepped(step.rows, len(step.parts), seconds, self._residents.used), urgent=False)

    def _compute(self, step: Step) -> Computed | None:
        """Run a step. If it fails, all requests in it fail, and the result is None."""
        try:
            return self._places.compute(step, used=self._residents.used)
        except DecodeError as error:
            for sequence, _ in step.parts:
                self._finish(sequence.request, "failed", str(error))
            return None

    def _store_filled_blocks(self, sequence: Sequence) -> None:
        """Queue the blocks that a running sequence has filled for the store. Raises DecodeError."""
        chain = self._runs[sequence.request].chain
        if chain is not None and self._connector is not None and sequence.computed >= chain.due:
            self._places.write_home(sequence)
            full = chain.extend(sequence.resident.tokens[len(chain.tokens) :])
            self._connector.store(sequence.resident, chain, full)

    def _advance(self, sequence: Sequence, logits: Logits) -> None:
        """Sample the next token of a sequence, and finish its request where it ends."""
        if sequence.computed == sequence.prompt:
            self._scheduler.prefilled(sequence)
        if len(sequence.tokens) >= sequence.limit:  # `max_tokens` is 0: only the KV of the prompt was requested
            self._finish(sequence.request, "length")
            return
        sampler = self._runs[sequence.request].sampler
        try:
            token = sampler.draw(logits)
        except EngineError as error:
            self._finish(sequence.request, "failed", str(error), error.code)
            return
        if self._vocabulary.ends_generation(token):
            self._finish(sequence.request, "stop")
            return
        sequence.tokens.append(token)
        self._emit(sequence, token, sampler.logprobs)
        if len(sequence.tokens) >= sequence.limit:
            self._finish(sequence.request, "length")

    def _emit(self, sequence: Sequence, token: int, logprobs: list[Logprob]) -> None:
        """Send the first token of a request at once, and collect later tokens until the next flush."""
        request = sequence.request
        unsent = self._unsent.setdefault(request, Tokens(request, [], []))
        unsent.ids.append(token)
        unsent.logprobs.extend(logprobs)
        if len(sequence.tokens) == sequence.prompt + 1:
            self._send_tokens(request)

    def _finish(self, request: int, reason: str, detail: str = "", code: str = "") -> None:
        self._send_tokens(request)
        run = self._runs.pop(request)
        resident = run.sequence.resident
        if run.scheduled:
            self._scheduler.remove(run.sequence)
        self._places.leave(run.sequence)
        self._residents.release(resident)
        run.sampler.close()
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

    def _before_loss(self, resident: CachedSequence) -> None:
        if self._connector is not None:
            self._connector.flush(resident)

    def _report_store_use(self) -> None:
        if self._operations and self._cache is not None:
            operations = [self._operations.popleft() for _ in range(len(self._operations))]
            self._channel.send(StoreUsed(operations, self._cache.up))


def main(argv: list[str]) -> int:
    """Load the model, report `Ready` or `LoadFailed`, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway handles Ctrl-C: it drains first
    channel = Channel(socket.socket(fileno=int(argv[1])))
    try:
        config = channel.first()
        assert isinstance(config, WorkerConfig)  # noqa: S101 - the pool's first message
        started = time.monotonic()
        require_same(Path(config.model), config.mark, config.build.get("model"))
        model = Model(Path(config.model))
        loaded = time.monotonic()
        worker = Worker(channel, model, config)
    except EOFError:
        return 0
    except EngineError as error:
        channel.send(LoadFailed(str(error)))
        channel.flush()
        return 1
    try:
        channel.send(Ready(worker.cells, loaded - started, time.monotonic() - loaded))
        channel.flush()
        worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
