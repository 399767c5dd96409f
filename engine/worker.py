"""The engine process: receive, step, send, until the gateway's end of the socket pair closes.

Started as `python -m engine.worker FD` by the pool. It has no other way out than that socket, so a gateway that dies,
even by SIGKILL, takes its engines along: the next read returns end of file.
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

WORTH_FETCHING: Final = 16
"""Tokens that must be missing before the store is asked: fewer are computed in less time than it takes to answer."""
WORTH_AWAITING: Final = 64
"""Tokens that another must be about to compute before it is waited for: fewer are computed as soon."""
PAUSE: Final = 1.0
"""Seconds for which they stay in any case: a program that goes on at once need not fetch what was just here."""
STAY: Final = 5.0
"""Seconds for which an ended answer's cells stay while others run: 1 000 idle ones slow their steps by about 2 %, and
fetching these again takes 20 ms, once."""
SMOOTH: Final = 0.04
"""Seconds within which tokens are sent together: 25 pictures a second are a film to the eye, and each sending costs the
gateway a share of a core that the engines then lack."""


class Worker:
    """The step loop over one context."""

    def __init__(self, channel: Channel, model: Model, config: WorkerConfig) -> None:
        """Make the context. Raises ModelLoadError."""
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
        self._scheduler = Scheduler(config.plan)
        self._runs: dict[int, Run] = {}
        self._threads = 0
        self._leaving = 0
        """Requests that move to another engine as soon as their KV is stored."""
        self._unsaid: dict[int, Tokens] = {}
        self._spoke = 0.0
        """When something was last sent."""

    def run(self) -> None:
        """Serve until the gateway leaves."""
        while True:
            self._follow()
            able = self._is_able
            storing = self._connector is not None and self._connector.has_work
            for message in self._channel.receive(wait=not able and not storing):
                self._hear(message)
            if self._connector is not None:
                self._connector.settle()
                self._connector.step()
                self._tell_of_store()
            self._expire()  # before a step counts what is in use: home's memory grows with that
            if self._channel.urgent:  # a step of a prompt is long
                self._channel.flush()
            if self._threads > 0:
                self._step()
            self._speak()

    def _expire(self) -> None:
        """Give up cells that nobody came back for, while others pay for them with every step."""
        if len(self._scheduler) > 0 and self._cache is not None and self._cache.writable:  # else they were lost
            self._residents.trim(self._idle_cells, PAUSE)
            self._residents.expire(STAY)

    @property
    def _is_able(self) -> bool:
        return self._threads > 0 and len(self._scheduler) > 0

    def _speak(self) -> None:
        """Send what there is to say, but tokens that follow each other fast together."""
        now = time.monotonic()
        if now - self._spoke >= SMOOTH or not self._is_able:
            for request in list(self._unsaid):
                self._say(request)
            self._channel.urgent = True
        if self._channel.urgent:
            self._channel.flush()
            self._spoke = now

    def _say(self, request: int) -> None:
        """Send the tokens of a request that were not sent yet."""
        drawn = self._unsaid.pop(request, None)
        if drawn is not None:
            self._channel.send(drawn)

    def close(self) -> None:
        """Store what is left to store."""
        if self._connector is not None:
            self._connector.close()

    def _open_cache(self, config: WorkerConfig) -> None:
        assert config.cache is not None  # noqa: S101 - for the type checker
        try:
            self._cache = config.cache.open(config.build, self._operations.append)
        except StoreError:  # the gateway, which opened the same store, has told why
            return
        self._connector = KVConnector(self._places.home, self._cache, wake=self._channel.ring)

    def _hear(self, message: ToEngine) -> None:
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
        """Drop what is left of a deleted response here, and confirm that none of it will be stored."""
        answer = partial(self._channel.send, Discarded(message.number))
        if self._connector is None:
            answer()
        else:  # before its cells go, from which other blocks may still have to be written
            chain = self._connector.chain(message.tokens, message.scope, message.public)
            self._connector.discard(chain, message.start, answer)
        self._residents.discard(message.tokens, message.scope, message.start)

    def _admit(self, message: Generate) -> None:
        try:
            sampler = self._sampler(message)
        except EngineError as error:
            self._channel.send(Finished(message.request, "failed", str(error), error.code))
            return
        limit = len(message.tokens) + message.max_tokens
        resident = self._residents.acquire(message.request, message.tokens, message.scope, limit, public=message.public)
        if resident is None:  # the dispatcher reserves cells before it sends, so this is a fault of ours
            sampler.close()
            self._channel.send(Finished(message.request, "failed", "no KV cells are free"))
            return
        answered = len(message.tokens) - message.generated if message.generated else None
        sequence = Sequence(
            message.request, resident, list(message.tokens), len(resident.tokens), limit, answered=answered
        )
        run = self._runs[message.request] = Run(message, sequence, sampler)
        missing = len(message.tokens) - 1 - sequence.computed
        # What was answered elsewhere is computed again a few tokens a step: any of it is worth fetching.
        worth = 1 if message.generated else WORTH_FETCHING
        if self._connector is None or not message.stored or missing < worth:
            self._begin(run)
            return
        # The last token is always computed: its logits are wanted, and no block holds these.
        wanted = self._connector.chain(message.tokens[:-1], message.scope, message.public)
        self._connector.fetch(wanted, sequence.computed, lambda blocks: self._fetched(run, blocks))

    def _sampler(self, message: Generate) -> Sampler:
        constraint = self._grammars.constraint(message.grammar)
        sampler = Sampler(message.sampling, top_logprobs=message.top_logprobs, constraint=constraint)
        if message.generated:
            sampler.replay(message.tokens[-message.generated :])
        return sampler

    def _fetched(self, run: Run, blocks: list[Stored]) -> None:
        if self._runs.get(run.message.request) is not run or self._connector is None:
            return  # it was aborted meanwhile
        before = run.sequence.computed
        run.sequence.computed = self._connector.load(run.sequence.resident, blocks, run.message.tokens)
        run.fetched = max(0, run.sequence.computed - before)
        self._begin(run)

    def _begin(self, run: Run) -> None:
        """Let it take part in steps, or wait for another who computes the same."""
        run.leader, run.awaited = self._leader(run)
        if run.leader is None:
            self._schedule(run)

    def _leader(self, run: Run) -> tuple[Run | None, int]:
        """Who has computed more of what both begin with, or is about to, and how much of it is worth waiting for."""
        tokens, scope, public = run.message.tokens, run.message.scope, run.message.public
        best, length = None, run.sequence.computed + WORTH_AWAITING
        for other in self._runs.values():
            within = len(tokens) - 1 if other.message.scope == scope else min(public, other.message.public)
            most = min(within, other.sequence.prompt)
            if other.scheduled and most >= length and self._residents.divisible:
                common = min(most, common_prefix(other.sequence.tokens, tokens))
                if common >= length:
                    best, length = other, common
        return best, length

    def _follow(self) -> None:
        """Let those begin whose leaders have come far enough, or have ended."""
        for run, leader in [(run, run.leader) for run in self._runs.values() if run.leader is not None]:
            source = leader.sequence.resident
            if source.request == leader.message.request and len(source.tokens) >= run.awaited:
                self._residents.follow(run.sequence.resident, source, run.awaited)
                run.leader, run.sequence.computed = None, run.awaited
                self._schedule(run)
            elif leader.message.request not in self._runs:
                self._begin(run)

    def _schedule(self, run: Run) -> None:
        if run.message.stored and self._connector is not None:
            # What is in the cells of this prompt is the beginning of a chain that now only grows.
            run.chain = self._connector.chain(run.sequence.resident.tokens, run.message.scope, run.message.public)
        run.scheduled = True
        self._scheduler.add(run.sequence)
        self._channel.send(Started(run.message.request, run.sequence.computed, run.fetched))

    def _step(self) -> None:
        began = time.perf_counter()
        step = self._scheduler.schedule(brief=self._leaving > 0)
        if not step.parts:
            return
        computed = self._compute(step)
        if computed is not None:
            for (sequence, _), row in zip(step.parts, computed.rows, strict=True):
                try:
                    self._keep(sequence)
                except DecodeError as error:
                    self._finish(sequence.request, "failed", str(error))
                    continue
                if sequence.pending == 0:
                    self._advance(sequence, computed.context.logits(row))
        seconds = time.perf_counter() - began
        self._channel.send(Stepped(step.rows, len(step.parts), seconds, self._residents.used), urgent=False)

    def _compute(self, step: Step) -> Computed | None:
        """Run a step. A failed one ends all that took part."""
        try:
            return self._places.compute(step, used=self._residents.used)
        except DecodeError as error:
            for sequence, _ in step.parts:
                self._finish(sequence.request, "failed", str(error))
            return None

    def _keep(self, sequence: Sequence) -> None:
        """Have the blocks stored that it has filled while it runs on, from home. Raises DecodeError."""
        chain = self._runs[sequence.request].chain
        if chain is not None and self._connector is not None and sequence.computed >= chain.due:
            self._places.write_home(sequence)
            full = chain.extend(sequence.resident.tokens[len(chain.tokens) :])
            self._connector.keep(sequence.resident, chain, full)

    def _advance(self, sequence: Sequence, logits: Logits) -> None:
        """Draw the next token of a sequence."""
        if sequence.computed == sequence.prompt:
            self._scheduler.prefilled(sequence)
        if len(sequence.tokens) >= sequence.limit:  # a limit of 0 new tokens: only the prompt was wanted
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
        self._drew(sequence, token, sampler.logprobs)
        if len(sequence.tokens) >= sequence.limit:
            self._finish(sequence.request, "length")

    def _drew(self, sequence: Sequence, token: int, logprobs: list[Logprob]) -> None:
        """Say a token: the first at once, the others with those that come within SMOOTH."""
        request = sequence.request
        unsaid = self._unsaid.setdefault(request, Tokens(request, [], []))
        unsaid.ids.append(token)
        unsaid.logprobs.extend(logprobs)
        if len(sequence.tokens) == sequence.prompt + 1:
            self._say(request)

    def _finish(self, request: int, reason: str, detail: str = "", code: str = "") -> None:
        self._say(request)
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
        # All that was computed, an unfilled block at its end too; who moves is gone only when it is stored.
        run.chain.extend(resident.tokens[len(run.chain.tokens) :])
        if reason == "moved":
            self._leaving += 1
            self._connector.keep(resident, run.chain, run.chain.blocks, done=lambda _: self._left(last))
            self._connector.drain()
        else:
            self._channel.send(last)
            done = partial(resident.note_stored, list(resident.tokens))
            self._connector.keep(resident, run.chain, run.chain.blocks, done=done)

    def _left(self, last: Finished) -> None:
        self._leaving -= 1
        self._channel.send(last)

    def _before_loss(self, resident: CachedSequence) -> None:
        if self._connector is not None:
            self._connector.flush(resident)

    def _tell_of_store(self) -> None:
        if self._operations and self._cache is not None:
            operations = [self._operations.popleft() for _ in range(len(self._operations))]
            self._channel.send(StoreUsed(operations, self._cache.up))


def main(argv: list[str]) -> int:
    """Load the model, say so, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to answer: it drains first
    channel = Channel(socket.socket(fileno=int(argv[1])))
    try:
        config = channel.first()
        assert isinstance(config, WorkerConfig)  # noqa: S101 - the pool's first word
        began = time.monotonic()
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
        channel.send(Ready(worker.cells, loaded - began, time.monotonic() - loaded))
        channel.flush()
        worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
