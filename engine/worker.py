"""The engine process: receive, step, send, until the gateway's end of the socket pair closes.

Started as `python -m engine.worker FD CONFIG` by the pool. It has no other way out than that socket, so a gateway that
dies, even by SIGKILL, takes its engines along: the next read returns end of file.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from engine.constraint import Grammars
from engine.errors import DecodeError, EngineError
from engine.llama import Context, Model
from engine.messages import (
    Abort,
    Finished,
    Forget,
    Frames,
    FromEngine,
    Generate,
    LoadFailed,
    Ready,
    SetThreads,
    Started,
    Stepped,
    ThreadsSet,
    ToEngine,
    Tokens,
    frame,
    to_engine_decoder,
)
from engine.plan import WIDEST, Plan
from engine.residents import Residents
from engine.sampler import Sampler
from engine.scheduler import Scheduler, Sequence, Step


class WorkerConfig(msgspec.Struct, frozen=True):
    """What an engine process is started with."""

    model: str
    cells: int
    sequences: int
    plan: Plan


class Channel:
    """The blocking end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        """Own `sock`."""
        self._sock = sock
        self._frames = Frames()
        self._unsent = bytearray()

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Messages that have come; with `wait`, at least a read's worth. Raises EOFError when the gateway is gone."""
        if not wait and not select.select([self._sock], [], [], 0)[0]:
            return []
        data = self._sock.recv(1 << 20)
        if not data:
            raise EOFError
        return [to_engine_decoder.decode(body) for body in self._frames.feed(data)]

    def send(self, message: FromEngine) -> None:
        """Put one message with those that `flush` sends."""
        self._unsent += frame(message)

    def flush(self) -> None:
        """Send what was said since the last time: one system call, and one waking of the gateway, a step."""
        if self._unsent:
            self._sock.sendall(self._unsent)
            self._unsent.clear()


class Worker:
    """The step loop over one context."""

    def __init__(self, channel: Channel, model: Model, config: WorkerConfig) -> None:
        """Make the context. Raises ModelLoadError."""
        self._channel = channel
        self._vocabulary = model.vocabulary
        self._grammars = Grammars(model.vocabulary)
        self._padding = config.sequences  # the number of a sequence that holds nothing but a step's padding
        self._context = Context(model, cells=config.cells + WIDEST, sequences=config.sequences + 1, threads=1)
        self.cells = self._context.cells - WIDEST
        self._residents = Residents(self._context, cells=self.cells, sequences=config.sequences)
        self._scheduler = Scheduler(config.plan)
        self._running: dict[int, tuple[Sequence, Sampler]] = {}
        self._threads = 0
        self._inside = 0.0
        """Seconds of this step in llama.cpp."""

    def run(self) -> None:
        """Serve until the gateway leaves."""
        while True:
            able = self._threads > 0 and len(self._scheduler) > 0
            for message in self._channel.receive(wait=not able):
                self._hear(message)
            if self._threads > 0:
                self._step()
            self._channel.flush()

    def _hear(self, message: ToEngine) -> None:
        match message:
            case Generate():
                self._admit(message)
            case Abort(request=request):
                if request in self._running:
                    self._finish(request, "aborted")
            case Forget(requests=requests):
                self._residents.forget(requests)
            case SetThreads(threads=threads):
                self._threads = threads
                if threads > 0:
                    self._context.set_threads(threads)
                    self._scheduler.threads = threads
                self._channel.send(ThreadsSet(threads))

    def _admit(self, message: Generate) -> None:
        try:
            sampler = self._sampler(message)
        except EngineError as error:
            self._channel.send(Finished(message.request, "failed", str(error), error.code))
            return
        limit = len(message.tokens) + message.max_tokens
        resident = self._residents.acquire(message.request, message.tokens, message.scope, limit)
        if resident is None:  # the dispatcher reserves cells before it sends, so this is a fault of ours
            sampler.close()
            self._channel.send(Finished(message.request, "failed", "no KV cells are free"))
            return
        cached = len(resident.tokens)
        sequence = Sequence(message.request, resident, list(message.tokens), cached, limit)
        self._running[message.request] = (sequence, sampler)
        self._scheduler.add(sequence)
        self._channel.send(Started(message.request, cached))

    def _sampler(self, message: Generate) -> Sampler:
        constraint = self._grammars.constraint(message.grammar)
        return Sampler(message.sampling, top_logprobs=message.top_logprobs, constraint=constraint)

    def _step(self) -> None:
        began = time.perf_counter()
        step = self._scheduler.schedule()
        if not step.parts:
            return
        self._inside = 0.0
        if self._compute(step):
            index = -1
            for sequence, tokens in step.parts:
                index += tokens
                start = sequence.computed
                sequence.computed += tokens
                sequence.resident.tokens.extend(sequence.tokens[start : sequence.computed])
                if sequence.pending == 0:
                    self._advance(sequence, index)
        taken = time.perf_counter() - began
        self._channel.send(Stepped(step.rows, len(step.parts), taken, self._inside, self._residents.used))

    def _compute(self, step: Step) -> bool:
        """Run a step; a failed one ends all that took part."""
        entries = [
            (sequence.tokens[p], p, sequence.resident.sequence, p == len(sequence.tokens) - 1)
            for sequence, tokens in step.parts
            for p in range(sequence.computed, sequence.computed + tokens)
        ]
        # Padding wants logits, too: the output matrix is the widest of all, and it is its kernel that likes the width.
        entries += [(entries[0][0], i, self._padding, True) for i in range(step.padding)]
        began = time.perf_counter()
        try:
            self._context.decode(entries)
        except DecodeError as error:
            for sequence, _ in step.parts:
                self._finish(sequence.request, "failed", str(error))
            return False
        finally:
            if step.padding:
                self._context.cut(self._padding, 0)
            self._inside += time.perf_counter() - began
        return True

    def _advance(self, sequence: Sequence, index: int) -> None:
        """Draw the next token of a sequence whose logits lie at `index` of the step."""
        if sequence.computed == sequence.prompt:
            self._scheduler.prefilled(sequence)
        if len(sequence.tokens) >= sequence.limit:  # a limit of 0 new tokens: only the prompt was wanted
            self._finish(sequence.request, "length")
            return
        began = time.perf_counter()
        sampler = self._running[sequence.request][1]
        try:
            token = sampler.draw(self._context.logits(index))
        except EngineError as error:
            self._finish(sequence.request, "failed", str(error), error.code)
            return
        self._inside += time.perf_counter() - began
        if self._vocabulary.ends_generation(token):
            self._finish(sequence.request, "stop")
            return
        sequence.tokens.append(token)
        self._channel.send(Tokens(sequence.request, [token], sampler.logprobs))
        if len(sequence.tokens) >= sequence.limit:
            self._finish(sequence.request, "length")

    def _finish(self, request: int, reason: str, detail: str = "", code: str = "") -> None:
        sequence, sampler = self._running.pop(request)
        self._scheduler.remove(sequence)
        # A failed step may have left part of a chunk behind: the cells must hold just what the resident says.
        self._context.cut(sequence.resident.sequence, len(sequence.resident.tokens))
        self._residents.release(sequence.resident)
        sampler.close()
        self._channel.send(Finished(request, reason, detail, code))


def main(argv: list[str]) -> int:
    """Load the model, say so, and serve."""
    started = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to answer: it drains first
    channel = Channel(socket.socket(fileno=int(argv[1])))
    config = msgspec.json.decode(argv[2], type=WorkerConfig)
    try:
        worker = Worker(channel, Model(Path(config.model)), config)
    except EngineError as error:
        channel.send(LoadFailed(str(error)))
        channel.flush()
        return 1
    try:
        channel.send(Ready(worker.cells, time.monotonic() - started))
        channel.flush()
        worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
