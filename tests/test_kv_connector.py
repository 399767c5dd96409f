"""KV that outlives its engine: kept in a store while it is computed, fetched by whoever continues it."""

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
    EngineProcess,
    Finished,
    Generate,
    Model,
    Sampling,
    Started,
    StoreUsed,
    Tokens,
    WorkerConfig,
)
from engine.kv_cache_manager import CachedSequence
from engine.kv_connector import KVConnector
from engine.llama import Context
from tests.cells import Cells
from tests.plans import MEASURED

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
    """Makes engines that share a store."""
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
    """Run one request to its end."""
    ids: list[int] = []
    async for message in engine.generate(request):
        match message:
            case Started():
                begun = message
            case Tokens():
                ids += message.ids
            case Finished():
                return begun, ids, message.reason
    raise AssertionError


async def test_a_returning_session_is_not_encoded_again_by_an_engine_that_starts_anew(spawn: Spawn) -> None:
    first = await started(spawn())
    begun, ids, _ = await answer(first, Generate(1, PROMPT, 20, GREEDY, "a"))
    assert (begun.cached, begun.fetched) == (0, 0)
    follow = [*PROMPT, *ids, 33, 34]
    _, undisturbed, _ = await answer(first, Generate(2, follow, 12, GREEDY, "b", stored=False))
    await first.stop()
    begun, ids, _ = await answer(await started(spawn()), Generate(3, follow, 12, GREEDY, "a"))
    # The token drawn last was never computed: all else comes from the store, the unfilled block at the end too.
    assert begun.cached == begun.fetched == len(PROMPT) + 20 - 1
    assert ids == undisturbed


def test_a_fetch_that_breaks_is_a_miss_and_no_request_waits_for_it_for_ever(
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
    connector.settle()
    assert found == [[]]
    connector.close()


async def test_blocks_of_a_running_answer_outlive_a_killed_engine(spawn: Spawn) -> None:
    engine = await started(spawn())
    drawn: list[int] = []
    pid = engine.pid
    with pytest.raises(EngineDiedError, match="SIGKILL"):
        async for message in engine.generate(Generate(1, PROMPT, 1700, ENDLESS, "a")):
            if isinstance(message, Tokens):
                drawn += message.ids
            if len(drawn) >= 2 * BLOCK and pid:
                await asyncio.sleep(0.1)  # what was computed is being written meanwhile
                os.kill(pid, signal.SIGKILL)
                pid = None
    begun, _, _ = await answer(await started(spawn()), Generate(2, [*PROMPT, *drawn], 5, GREEDY, "a"))
    assert begun.fetched >= (len(PROMPT) + BLOCK) // BLOCK * BLOCK


async def test_an_answer_moves_between_engines_in_the_middle_and_is_the_same(spawn: Spawn) -> None:
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
        begun, ids, _ = await answer(two, rest)
        assert begun.fetched == 100 + len(drawn) - 1
        assert drawn + ids == whole


async def test_an_answer_that_moves_fetches_the_last_few_tokens_too(spawn: Spawn) -> None:
    one, two = await started(spawn()), await started(spawn())
    _, drawn, _ = await answer(one, Generate(1, PROMPT, 20, UNENDED, "a"))
    await answer(two, Generate(2, [*PROMPT, *drawn[:14]], 0, UNENDED, "a", stored=False))
    rest = Generate(3, [*PROMPT, *drawn], 5, UNENDED, "a", generated=20)
    begun, _, _ = await answer(two, rest)
    assert (begun.cached, begun.fetched) == (len(PROMPT) + 19, 5)


async def test_another_tenant_gets_the_operators_blocks_and_no_others(spawn: Spawn) -> None:
    engine = await started(spawn())
    await answer(engine, Generate(1, PROMPT, 2, GREEDY, "a", public=150))
    await engine.stop()
    fresh = await started(spawn())
    begun, _, _ = await answer(fresh, Generate(2, PROMPT, 2, GREEDY, "b", public=150))
    assert begun.fetched == 150
    begun, _, _ = await answer(fresh, Generate(3, [*PROMPT[:200], 1, 2, 3], 2, GREEDY, "c", public=150))
    assert (begun.cached, begun.fetched) == (150, 0)  # from this engine's own cells
    begun, _, _ = await answer(fresh, Generate(4, PROMPT, 2, GREEDY, "d"))
    assert begun.cached == 0


async def test_a_turn_stores_what_is_new_in_it_and_not_again_what_came_before(
    tiny_model: Path, cache: CacheConfig
) -> None:
    puts: list[int] = []
    put = asyncio.Event()

    def hear(used: StoreUsed) -> None:
        puts.extend(operation.bytes for operation in used.operations if operation.operation == "put")
        put.set()

    config = WorkerConfig(str(tiny_model), 2048, 8, MEASURED, cache, {"model": "tiny"})
    engine = await started(EngineProcess("0", config, on_change=lambda _: None, on_store=hear))
    tokens = PROMPT[:256]
    sizes = []
    for number in range(4):
        _, ids, _ = await answer(engine, Generate(number, tokens, 2, GREEDY, "a"))
        tokens = [*tokens, *ids, *range(60, 90)]  # so many new ones that the next turn asks the store for them
        while not puts:
            put.clear()
            await asyncio.wait_for(put.wait(), 10)
        await asyncio.sleep(0.1)  # for what else it stores
        sizes.append(sum(puts))
        puts.clear()
    block = sizes[0] / 2  # the first was of 256 tokens, and each later one brought 32
    assert [round(size / block * BLOCK / 32) for size in sizes[1:]] == [1, 2, 3]  # in one tail, which grows
    await engine.stop()


async def test_what_is_not_to_be_stored_leaves_nothing_behind(spawn: Spawn) -> None:
    engine = await started(spawn())
    await answer(engine, Generate(1, PROMPT, 2, GREEDY, "a", stored=False))
    await engine.stop()
    begun, _, _ = await answer(await started(spawn()), Generate(2, PROMPT, 2, GREEDY, "a"))
    assert begun.cached == 0


async def test_cells_that_are_given_up_are_stored_first(tiny_model: Path, cache: CacheConfig) -> None:
    config = WorkerConfig(str(tiny_model), 512, 8, MEASURED, cache, {"model": "tiny"}, idle_cells=0)
    engine = await started(EngineProcess("0", config, on_change=lambda _: None))
    said = [(await answer(engine, Generate(n, [n, *PROMPT], 2, GREEDY, "a")))[1] for n in range(6)]
    for n, ids in enumerate(said):
        begun, _, _ = await answer(engine, Generate(10 + n, [n, *PROMPT, *ids, 99], 2, GREEDY, "a"))
        assert begun.fetched == 1 + len(PROMPT) + 1
    await engine.stop()


async def test_an_engine_whose_store_cannot_be_had_computes_and_tells(tiny_model: Path, tmp_path: Path) -> None:
    told: list[StoreUsed] = []
    (tmp_path / "file").touch()
    away = CacheConfig(f"unix://{tmp_path}/no-redis.sock", ttl=3600, max_bytes=1 << 28, keys=KeyRing.new().text)
    config = WorkerConfig(str(tiny_model), 2048, 8, MEASURED, away, {"model": "tiny"})
    engine = await started(EngineProcess("0", config, on_change=lambda _: None, on_store=told.append))
    _, ids, reason = await answer(engine, Generate(1, PROMPT, 5, GREEDY, "a"))
    assert (len(ids), reason) == (5, "length")
    assert told
    assert not told[-1].up
    await engine.stop()


async def test_a_request_that_is_aborted_while_its_blocks_are_fetched_just_ends(spawn: Spawn) -> None:
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
def test_only_what_is_in_the_store_counts_as_what_can_be_fetched_again(
    cache: CacheConfig, monkeypatch: pytest.MonkeyPatch, room: int, whole: bool
) -> None:
    monkeypatch.setattr("engine.kv_connector.UNWRITTEN", room)
    rung = threading.Event()
    cells = Cells(1)
    cells.held[0] = PROMPT
    connector = KVConnector(cells, cache.open({}), wake=rung.set)
    chain = connector.chain(PROMPT, "a", 0)
    told: list[bool] = []
    connector.keep(CachedSequence(0, tokens=PROMPT), chain, chain.blocks, done=told.append)
    while connector.has_work:
        connector.step()
    assert rung.wait(10)
    connector.settle()
    assert told == [whole]
    connector.close()
