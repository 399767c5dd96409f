"""One request's way through engines that give it up, die or fail: what its reader hears is one answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from engine import (
    Answer,
    EngineDiedError,
    EngineError,
    Finished,
    Generate,
    ModelLoadError,
    Sampling,
    Started,
    Tokens,
    WorkerConfig,
)
from engine.learning import LearningCostModel
from engine.process import EngineProcess
from gateway.responses.cancellation import Cancellation, Cause
from gateway.responses.failover import Relay
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.placement import Demand
from tests.support.plans import MEASURED

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1)
FAILED = Finished(0, "failed", "llama_decode returned 1")


class Pool:
    """Engines that say what is written here, one list for each time that they are asked."""

    def __init__(self, *stretches: list[Answer | EngineError], unloadable: int = 0) -> None:
        self.left = list(stretches)
        self.engines = [SimpleNamespace(loaded=number >= unloadable) for number in range(2)]
        self.asked: list[Generate] = []

        self.aborted: list[int] = []

    def number(self) -> int:
        return len(self.asked)

    def abort(self, _engine: object, number: int) -> None:
        self.aborted.append(number)

    async def start(self, _engine: object) -> None:
        """They run."""

    async def generate(self, _engine: object, request: Generate) -> AsyncIterator[Answer]:
        self.asked.append(request)
        for message in self.left.pop(0):
            if isinstance(message, EngineError):
                raise message
            yield message


async def received(pool: Pool, *, cancel_at: int | None = None) -> tuple[list[int], str]:
    """The tokens and the reason of one request that may have ten, and is cancelled when it has got `cancel_at`."""
    engine = EngineProcess("0", WorkerConfig("unused", 100, 1, MEASURED), on_change=lambda _: None)
    dispatcher = Dispatcher([engine], LearningCostModel(MEASURED))
    placement = dispatcher.place(Demand(3, 17, stored=True))
    assert placement is not None
    house: Any = pool
    request = Generate(0, [1, 2, 3], 10, GREEDY, "a", stored=True)
    cancellation, messages = Cancellation(), list[Answer]()
    async for message in Relay(house, dispatcher, request, cancellation).run(placement):
        messages.append(message)
        if isinstance(message, Tokens) and message.ids[-1] == cancel_at:
            cancellation.cancel(Cause.CLIENT)
            cancellation.cancel(Cause.SHUTDOWN)
            assert cancellation.cause is Cause.CLIENT
    assert isinstance(messages[-1], Finished)
    assert sum(isinstance(message, Started) for message in messages) == 1
    return [token for message in messages if isinstance(message, Tokens) for token in message.ids], messages[-1].reason


async def test_an_answer_goes_on_after_an_engine_gave_it_up_died_or_failed_a_step() -> None:
    died = EngineDiedError("engine 0: killed", requests=1)
    pool = Pool(
        [Started(0, 0, 0), Tokens(0, [4, 5]), Finished(0, "moved")],
        [Started(0, 0, 0), Tokens(0, [6]), died],
        [Started(0, 0, 0), Tokens(0, [7]), FAILED],
        [Started(0, 0, 0), Tokens(0, [8]), Finished(0, "stop")],
    )
    assert await received(pool) == ([4, 5, 6, 7, 8], "stop")
    assert [(request.tokens[3:], request.generated, request.max_tokens) for request in pool.asked] == [
        ([], 0, 10),
        ([4, 5], 2, 8),
        ([4, 5, 6], 3, 7),
        ([4, 5, 6, 7], 4, 6),
    ]


async def test_a_cancelled_request_is_aborted_once_and_not_continued_in_another_engine() -> None:
    pool = Pool([Started(0, 0, 0), Tokens(0, [4]), Finished(0, "moved")], [Started(0, 0, 0), Tokens(0, [5])])
    assert await received(pool, cancel_at=4) == ([4], "aborted")
    assert (pool.aborted, len(pool.left)) == ([0], 1)


async def test_a_request_whose_steps_fail_again_fails() -> None:
    pool = Pool([Started(0, 0, 0), Tokens(0, [4]), FAILED], [Started(0, 0, 0), FAILED])
    assert await received(pool) == ([4], "failed")


@pytest.mark.parametrize("code", ["invalid_request", "context_length_exceeded"])
async def test_what_is_the_requests_own_fault_is_not_tried_again(code: str) -> None:
    pool = Pool([Started(0, 0, 0), Finished(0, "failed", "no grammar", code)])
    assert await received(pool) == ([], "failed")


async def test_a_request_that_kills_two_engines_fails() -> None:
    died = EngineDiedError("engine 0: killed", requests=1)
    with pytest.raises(EngineDiedError):
        await received(Pool([Started(0, 0, 0), died], [Started(0, 0, 0), died]))


async def test_engines_that_died_before_they_received_a_request_do_not_count_against_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.responses.failover.PAUSE", 0.001)
    died = EngineDiedError("engine 0: killed", requests=1)
    whole: list[Answer | EngineError] = [Started(0, 0, 0), Tokens(0, [5]), Finished(0, "stop")]
    assert await received(Pool([Started(0, 0, 0), Tokens(0, [4]), died], [died], [died], whole)) == ([4, 5], "stop")


async def test_an_answer_waits_until_an_engine_can_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.responses.failover.PAUSE", 0.001)
    monkeypatch.setattr("gateway.responses.failover.WAIT", 0.02)
    gone = EngineDiedError("engine 0: no process could be started: Too many open files")
    unloadable = ModelLoadError("no memory for the model's context")
    whole: list[Answer | EngineError] = [Started(0, 0, 0), Tokens(0, [4]), Finished(0, "stop")]
    assert await received(Pool([gone], [gone], [gone], [gone], [gone], [unloadable], whole, unloadable=1)) == (
        [4],
        "stop",
    )
    with pytest.raises(EngineDiedError):
        await received(Pool([gone], [gone], [gone], [gone], [gone], [gone], [gone]))


async def test_a_request_fails_at_once_when_no_engine_can_load_the_model() -> None:
    pool = Pool([ModelLoadError("not a model")], unloadable=2)
    with pytest.raises(ModelLoadError):
        await received(pool)
    assert pool.left == []
