"""Queue, dispatcher, relay, thread shares and schedulers as one, without a model: whatever comes, leaves or breaks.

Each request's tokens are its positions, so that one that is lost or doubled is seen.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Answer, EngineDiedError, Finished, Generate, ModelLoadError, Sampling, Started, State, Tokens
from engine.kv.manager import CachedSequence
from engine.learning import LearningCostModel
from engine.scheduler import Scheduler, Sequence
from engine.shares import CoreShares
from gateway.auth.principal import Principal
from gateway.responses.cancellation import Cancellation, Cause
from gateway.responses.failover import MOST_DEATHS, Relay
from gateway.scheduling.admission import Admission
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.placement import Demand
from tests.support.plans import MEASURED

CORES, ENGINES, CELLS = 2, 3, 1200
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1)


class Engine:
    """A process as dispatcher and relay see it, which steps on request."""

    def __init__(self, name: str, pool: Pool) -> None:
        self.name, self.cells, self.state = name, CELLS, State.IDLE
        self.load_failed = False
        self.threads = 0
        self.sent: deque[int] = deque()
        """Thread counts that were sent and not received yet."""
        self._pool = pool
        self._begin()

    def _begin(self) -> None:
        self._scheduler = Scheduler(LearningCostModel(MEASURED))
        self._sequences: dict[int, Sequence] = {}
        self._queues: dict[int, asyncio.Queue[Answer | EngineDiedError]] = {}

    async def generate(self, request: Generate) -> AsyncIterator[Answer]:
        """As an engine process does."""
        if self.state is State.FAILED:
            raise EngineDiedError(f"engine {self.name} is not running")
        number, limit = request.request, len(request.tokens) + request.max_tokens
        assert request.tokens == list(range(len(request.tokens))), "tokens were lost or doubled on the way"
        assert number not in self._queues
        answered = len(request.tokens) - request.generated if request.generated else None
        sequence = Sequence(number, CachedSequence(number), list(request.tokens), 0, limit, answered=answered)
        queue = self._queues[number] = asyncio.Queue()
        self._sequences[number] = sequence
        self._scheduler.add(sequence)
        queue.put_nowait(Started(number, 0))
        self._pool.change(self, State.BUSY)
        while True:
            message = await queue.get()
            if isinstance(message, EngineDiedError):
                raise message
            if isinstance(message, Finished):
                del self._queues[number]
                if not self._queues:
                    self._pool.change(self, State.IDLE)
            yield message
            if isinstance(message, Finished):
                return

    def abort(self, number: int) -> None:
        """Its client left."""
        self._end(number, "aborted")

    def suspend(self, number: int) -> None:
        """It moves."""
        self._end(number, "moved")

    def _end(self, number: int, reason: str) -> None:
        sequence = self._sequences.pop(number, None)
        if sequence is not None:
            self._scheduler.remove(sequence)
            self._queues[number].put_nowait(Finished(number, reason))

    def step(self) -> None:
        """One step of its loop."""
        if self.threads == 0 or not self._sequences:
            return
        step = self._scheduler.schedule()
        assert step.parts, "it has work, and does nothing"
        assert len({id(sequence) for sequence, _ in step.parts}) == len(step.parts)
        for sequence, tokens in step.parts:
            assert self._sequences[sequence.request] is sequence
            sequence.computed += tokens
            assert sequence.computed <= len(sequence.tokens)
            if sequence.pending == 0:
                if sequence.computed == sequence.prompt:
                    self._scheduler.prefilled(sequence)
                self._queues[sequence.request].put_nowait(Tokens(sequence.request, [len(sequence.tokens)]))
                sequence.tokens.append(len(sequence.tokens))
                if len(sequence.tokens) >= sequence.limit:
                    self._end(sequence.request, "length")

    def receive(self) -> None:
        """Receive the next thread count."""
        if self.sent:
            self.threads = self.sent.popleft()
            if self.threads:
                self._scheduler.threads = self.threads
            self._pool.shares.confirm(self.name, self.threads)

    def crash(self) -> None:
        """End with all that it has."""
        if self.state is not State.FAILED:
            queues = list(self._queues.values())
            self._begin()
            self.threads = 0
            self.sent.clear()
            self._pool.change(self, State.FAILED)
            for queue in queues:
                queue.put_nowait(EngineDiedError(f"engine {self.name}: killed", requests=len(queues)))

    def spoil(self) -> None:
        """End, and not be able to load the model."""
        self.crash()
        self.load_failed = True
        self._pool.change(self, State.FAILED)

    def restart(self) -> None:
        """Load again, as the pool has it done after a while."""
        if self.state is State.FAILED:
            self.load_failed = False
            self._pool.change(self, State.IDLE)

    def unload(self) -> None:
        """Give the memory back, if nobody is there."""
        if self.state is State.IDLE:
            self._begin()
            self.threads = 0
            self.sent.clear()
            self._pool.change(self, State.STOPPED)

    @property
    def loaded(self) -> bool:
        """Whether it computes at once."""
        return self.state in (State.IDLE, State.BUSY)


class Pool:
    """The engines and their threads, as engine/pool.py keeps them."""

    def __init__(self) -> None:
        self.shares = CoreShares(CORES, lambda name, threads: self.engines[int(name)].sent.append(threads))
        self.engines = [Engine(str(i), self) for i in range(ENGINES)]
        self.changed: Callable[[], None] = lambda: None
        self._numbers = itertools.count()

    def change(self, engine: Engine, state: State) -> None:
        """As `EnginePool._changed` does."""
        engine.state = state
        if state in (State.FAILED, State.STOPPED):
            self.shares.lost(engine.name)
        else:
            self.shares.work([e.name for e in self.engines if e.state is State.BUSY])
        self.changed()

    def number(self) -> int:
        """A number that no request had."""
        return next(self._numbers)

    async def start(self, engine: Engine) -> None:
        """A request does not wait for the pool to restart its engine."""
        if engine.load_failed:
            raise ModelLoadError("no memory")
        if not engine.loaded:
            self.change(engine, State.IDLE)

    def generate(self, engine: Engine, request: Generate) -> AsyncIterator[Answer]:
        """What the engine says."""
        return engine.generate(request)

    def abort(self, engine: Engine, number: int) -> None:
        """A client left."""
        engine.abort(number)

    def suspend(self, engine: Engine, number: int) -> None:
        """A request moves."""
        engine.suspend(number)

    def check(self) -> None:
        """No more threads than cores, including thread counts that were sent and not received."""
        assert sum(max([engine.threads, *engine.sent]) for engine in self.engines) <= CORES


class House:
    """Everything between a request and its last token."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.dispatcher = Dispatcher(self.pool.engines, LearningCostModel(MEASURED), suspend=self.pool.suspend)
        self.admission = Admission(self.dispatcher.place, self.dispatcher.release, limit=1000, timeout=1000)
        self.pool.changed = self.admission.pump
        self.clients: list[asyncio.Task[None]] = []
        self.ended: dict[int, str] = {}
        self.cancellations: dict[int, Cancellation] = {}
        self.relays: dict[int, Relay] = {}

    def happen(self, event: str, number: int, answer: int) -> None:
        """A client comes, one leaves, an engine does something, or the dispatcher looks around."""
        match event:
            case "ask":
                self.clients.append(asyncio.create_task(self.ask(len(self.clients), number, answer)))
            case "rebalance":
                self.dispatcher.rebalance()
            case "abort":
                if number in self.cancellations:
                    self.cancellations[number].cancel(Cause.CLIENT)
            case _:
                getattr(self.pool.engines[number % ENGINES], event)()

    async def ask(self, request: int, prompt: int, answer: int) -> None:
        """One client, from its request to the end of its answer."""
        demand = Demand(prompt, answer, stored=True)
        ticket = self.admission.enter(demand, Principal("t", f"user {request % 3}"))
        tokens: list[int] = []
        try:
            placement = await ticket.placed
            generate = Generate(request, list(range(prompt)), answer, GREEDY, "t")
            cancellation = self.cancellations[request] = Cancellation()
            relay = Relay(self.pool, self.dispatcher, generate, cancellation)
            self.relays[request] = relay
            reason = ""
            async with aclosing(relay.run(placement)) as messages:
                async for message in messages:
                    assert not reason, "it goes on after its end"
                    if isinstance(message, Tokens):
                        tokens += message.ids
                    if isinstance(message, Finished):
                        reason = message.reason
        except EngineDiedError:
            reason = "failed"
            assert self.relays[request].deaths >= MOST_DEATHS
        except ModelLoadError:
            reason = "failed"
            assert not any(engine.loaded for engine in self.pool.engines), "another could have served it"
        finally:
            self.admission.leave(ticket)
        assert tokens == list(range(prompt, prompt + len(tokens))), "a token was lost or doubled"
        assert reason != "length" or len(tokens) == answer
        assert request not in self.ended
        self.ended[request] = reason


KINDS = ("step", "step", "step", "receive", "receive", "abort", "crash", "spoil", "restart", "unload", "rebalance")
Events = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 300), st.integers(1, 40)),
        st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.just(0)),
    ),
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(Events)
def test_no_request_is_lost_doubled_or_left_whatever_comes_aborts_or_crashes(events: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.responses.failover.PAUSE", 0)
        patch.setattr("gateway.responses.failover.WAIT", 0)
        patch.setattr("gateway.responses.failover.MOST_WAITS", 1_000_000)
        patch.setattr("gateway.scheduling.dispatcher.MIN_STAY", 0)
        asyncio.run(live(events))


async def live(events: list[tuple[str, int, int]]) -> None:
    """All that happens, and then calm, until everybody has ended."""
    house = House(Pool())
    for event, number, answer in events:
        house.happen(event, number, answer)
        await settled(house)
    for engine in house.pool.engines:
        engine.restart()
    for _ in range(3000):
        if all(client.done() for client in house.clients) and not house.pool.shares.held:
            break
        for engine in house.pool.engines:
            engine.receive()
            engine.step()
        await settled(house)
    for client in house.clients:
        assert client.done(), "it was left waiting"
        client.result()
    assert set(house.ended) == set(range(len(house.clients)))
    assert set(house.ended.values()) <= {"length", "aborted", "failed"}
    assert house.dispatcher.running == house.admission.running == len(house.admission) == 0
    assert house.pool.shares.held == 0, "threads were not given back"


async def settled(house: House) -> None:
    """Let everybody do what is to do now, and look at the threads meanwhile."""
    for _ in range(12):
        house.pool.check()
        await asyncio.sleep(0)
