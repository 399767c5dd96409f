"""KV that survives its engine: stored while it is computed, and fetched by the engine that continues it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from cache import BLOCK, CacheConfig, KeyRing, PrefixCache, Stored
from engine import (
    EngineDiedError,
    Finished,
    Generate,
    Model,
    Sampling,
    Started,
    StoreUsed,
    Tokens,
    WorkerConfig,
)
from engine.kv.connector import KVConnector
from engine.kv.manager import CachedSequence
from engine.llama import Context
from engine.process import EngineProcess
from tests.support.cells import Cells
from tests.support.plans import MEASURED

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1)
ENDLESS = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias={65: 1000.0})
UNENDED = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=5, logit_bias={257: -1000.0, 259: -1000.0})
PROMPT = [40 + i % 50 for i in range(300)]

Spawn = Callable[[], EngineProcess]


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(f"sqlite://{tmp_path}/blocks.db", ttl=3600, max_bytes=1 << 28, keys=KeyRing.new().text)


@pytest.fixture
async def spawn(tiny_model: Path, cache: CacheConfig) -> AsyncIterator[Spawn]:
    """Return a function that creates engines with a common store."""
    made: list[EngineProcess] = []

    def make() -> EngineProcess:
        config = WorkerConfig(str(tiny_model), 2048, 8, MEASURED, cache, {"model": "tiny"})
        made.append(EngineProcess(str(len(made)), config, on_change=lambda _: None))
        return made[-1]

    yield make
    for engine in made:
        await engine.stop()


async def started(engine: EngineProcess) -> EngineProcess:
    await engine.start()
    engine.set_threads(1)
    return engine


async def answer(engine: EngineProcess, request: Generate) -> tuple[Started, list[int], str]:
    """Run one request to its end. Returns (`Started`, new tokens, reason)."""
    ids: list[int] = []
    async for message in engine.generate(request):
        match message:
            case Started():
                start = message
            case Tokens():
                ids += message.ids
            case Finished():
                return start, ids, message.reason
    raise AssertionError


async def test_a_new_engine_fetches_the_history_of_a_returning_session(spawn: Spawn) -> None:
    first = await started(spawn())
    start, ids, _ = await answer(first, Generate(1, PROMPT, 20, GREEDY, "a"))
    assert (start.cached, start.fetched) == (0, 0)
    follow = [*PROMPT, *ids, 33, 34]
    _, undisturbed, _ = await answer(first, Generate(2, follow, 12, GREEDY, "b", stored=False))
    await first.stop()
    start, ids, _ = await answer(await started(spawn()), Generate(3, follow, 12, GREEDY, "a"))
    # The token sampled last was never computed. All others come from the store, including the unfilled last block.
    assert start.cached == start.fetched == len(PROMPT) + 20 - 1
    assert ids == undisturbed


def test_a_failed_fetch_counts_as_a_miss_and_its_request_continues(
    model: Model, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_: object, **__: object) -> list[Stored]:
        raise MemoryError

    monkeypatch.setattr(PrefixCache, "fetch", short_of_memory)
    woken = threading.Event()
    found: list[list[Stored]] = []
    connector = KVConnector(Context(model, cells=256, sequences=1, threads=1), cache.open({}), wake=woken.set)
    connector.fetch(connector.chain(PROMPT, "a", 0), 0, found.append)
    assert woken.wait(5)
    connector.run_callbacks()
    assert found == [[]]
    connector.close()


async def test_blocks_of_a_running_response_survive_the_death_of_its_engine(spawn: Spawn) -> None:
    engine = await started(spawn())
    drawn: list[int] = []
    pid = engine.pid
    with pytest.raises(EngineDiedError, match="SIGKILL"):
        async for message in engine.generate(Generate(1, PROMPT, 1700, ENDLESS, "a")):
            if isinstance(message, Tokens):
                drawn += message.ids
            if len(drawn) >= 2 * BLOCK and pid:
                await asyncio.sleep(0.1)  # lets the store write the computed blocks
                os.kill(pid, signal.SIGKILL)
                pid = None
    start, _, _ = await answer(await started(spawn()), Generate(2, [*PROMPT, *drawn], 5, GREEDY, "a"))
    assert start.fetched >= (len(PROMPT) + BLOCK) // BLOCK * BLOCK


async def test_a_response_that_moves_to_another_engine_has_the_same_tokens(spawn: Spawn) -> None:
    one, two = await started(spawn()), await started(spawn())
    for number, sampling in enumerate(
        (UNENDED, replace(UNENDED, temperature=1.2, top_p=0.9, top_k=40, repeat_penalty=1.3, presence_penalty=0.5))
    ):
        scope = str(number)
        _, whole, _ = await answer(one, Generate(10 + number, PROMPT[:100], 1500, sampling, scope, stored=False))
        drawn: list[int] = []
        async for message in one.generate(Generate(20 + number, PROMPT[:100], 1500, sampling, f"moved {scope}")):
            if isinstance(message, Tokens):
                drawn += message.ids
                if len(drawn) >= 50:
                    one.suspend(20 + number)
        assert isinstance(message, Finished)
        assert message.reason == "moved"
        assert 50 <= len(drawn) < 1500
        rest = Generate(
            30 + number, [*PROMPT[:100], *drawn], 1500 - len(drawn), sampling, f"moved {scope}", generated=len(drawn)
        )
        start, ids, _ = await answer(two, rest)
        assert start.fetched == 100 + len(drawn) - 1
        assert drawn + ids == whole


async def test_a_response_that_moves_also_fetches_its_last_few_tokens(spawn: Spawn) -> None:
    one, two = await started(spawn()), await started(spawn())
    _, drawn, _ = await answer(one, Generate(1, PROMPT, 20, UNENDED, "a"))
    await answer(two, Generate(2, [*PROMPT, *drawn[:14]], 0, UNENDED, "a", stored=False))
    rest = Generate(3, [*PROMPT, *drawn], 5, UNENDED, "a", generated=20)
    start, _, _ = await answer(two, rest)
    assert (start.cached, start.fetched) == (len(PROMPT) + 19, 5)


async def test_another_tenant_gets_the_operators_blocks_and_no_others(spawn: Spawn) -> None:
    engine = await started(spawn())
    await answer(engine, Generate(1, PROMPT, 2, GREEDY, "a", public=150))
    await engine.stop()
    fresh = await started(spawn())
    start, _, _ = await answer(fresh, Generate(2, PROMPT, 2, GREEDY, "b", public=150))
    assert start.fetched == 150
    start, _, _ = await answer(fresh, Generate(3, [*PROMPT[:200], 1, 2, 3], 2, GREEDY, "c", public=150))
    assert (start.cached, start.fetched) == (150, 0)  # from this engine's own cells
    start, _, _ = await answer(fresh, Generate(4, PROMPT, 2, GREEDY, "d"))
    assert start.cached == 0


async def test_a_turn_stores_only_its_new_tokens(tiny_model: Path, cache: CacheConfig) -> None:
    puts: list[int] = []
    put = asyncio.Event()

    def record(used: StoreUsed) -> None:
        puts.extend(operation.bytes for operation in used.operations if operation.operation == "put")
        put.set()

    config = WorkerConfig(str(tiny_model), 2048, 8, MEASURED, cache, {"model": "tiny"})
    engine = await started(EngineProcess("0", config, on_change=lambda _: None, on_store=record))
    tokens = PROMPT[:256]
    sizes = []
    for number in range(4):
        _, ids, _ = await answer(engine, Generate(number, tokens, 2, GREEDY, "a"))
        tokens = [*tokens, *ids, *range(60, 90)]  # enough new tokens for the next turn to fetch from the store
        while not puts:
            put.clear()
            await asyncio.wait_for(put.wait(), 10)
        await asyncio.sleep(0.1)  # until the engine has stored the rest
        sizes.append(sum(puts))
        puts.clear()
    block = sizes[0] / 2  # the first turn had 256 tokens, and each later one added 32
    assert [round(size / block * BLOCK / 32) for size in sizes[1:]] == [1, 2, 3]  # in one growing tail block
    await engine.stop()


async def test_what_is_not_to_be_stored_leaves_nothing_behind(spawn: Spawn) -> None:
    engine = await started(spawn())
    await answer(engine, Generate(1, PROMPT, 2, GREEDY, "a", stored=False))
    await engine.stop()
    start, _, _ = await answer(await started(spawn()), Generate(2, PROMPT, 2, GREEDY, "a"))
    assert start.cached == 0


async def test_cells_are_stored_before_they_are_evicted(tiny_model: Path, cache: CacheConfig) -> None:
    config = WorkerConfig(str(tiny_model), 512, 8, MEASURED, cache, {"model": "tiny"}, idle_cells=0)
    engine = await started(EngineProcess("0", config, on_change=lambda _: None))
    said = [(await answer(engine, Generate(n, [n, *PROMPT], 2, GREEDY, "a")))[1] for n in range(6)]
    await engine.stop()  # the cells of all but the last were evicted before
    await started(engine)
    for n, ids in enumerate(said):
        start, _, _ = await answer(engine, Generate(10 + n, [n, *PROMPT, *ids, 99], 2, GREEDY, "a"))
        assert start.fetched == 1 + len(PROMPT) + 1
    await engine.stop()


async def test_an_engine_without_its_store_computes_and_reports_that_the_store_is_down(
    tiny_model: Path, tmp_path: Path
) -> None:
    reports: list[StoreUsed] = []
    (tmp_path / "file").touch()
    away = CacheConfig(f"unix://{tmp_path}/no-redis.sock", ttl=3600, max_bytes=1 << 28, keys=KeyRing.new().text)
    config = WorkerConfig(str(tiny_model), 2048, 8, MEASURED, away, {"model": "tiny"})
    engine = await started(EngineProcess("0", config, on_change=lambda _: None, on_store=reports.append))
    _, ids, reason = await answer(engine, Generate(1, PROMPT, 5, GREEDY, "a"))
    assert (len(ids), reason) == (5, "length")
    assert reports
    assert not reports[-1].up
    await engine.stop()


async def test_a_request_that_is_aborted_during_a_fetch_ends(spawn: Spawn) -> None:
    engine = await started(spawn())
    engine.set_threads(0)
    running = asyncio.create_task(answer_reason(engine, Generate(1, PROMPT, 5, GREEDY, "a")))
    await asyncio.sleep(0)
    engine.abort(1)
    assert await running == "aborted"
    engine.set_threads(1)
    assert (await answer(engine, Generate(2, PROMPT, 5, GREEDY, "a")))[2] == "length"


async def answer_reason(engine: EngineProcess, request: Generate) -> str:
    reason = ""
    async for message in engine.generate(request):
        if isinstance(message, Finished):
            reason = message.reason
    return reason


@pytest.mark.parametrize(("room", "whole"), [(1 << 20, True), (0, False)])
def test_a_job_reports_whether_all_its_blocks_are_in_the_store(
    cache: CacheConfig, monkeypatch: pytest.MonkeyPatch, room: int, whole: bool
) -> None:
    monkeypatch.setattr("engine.kv.connector.MAX_UNWRITTEN_BYTES", room)
    rung = threading.Event()
    cells = Cells(1)
    cells.held[0] = PROMPT
    connector = KVConnector(cells, cache.open({}), wake=rung.set)
    chain = connector.chain(PROMPT, "a", 0)
    reports: list[bool] = []
    connector.store(CachedSequence(0, tokens=PROMPT), chain, chain.blocks, done=reports.append)
    while connector.has_work:
        connector.step()
    assert rung.wait(10)
    connector.run_callbacks()
    assert reports == [whole]
    connector.close()
