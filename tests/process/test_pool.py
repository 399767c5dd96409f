"""The pool: never uses more threads than cores, starts engines when needed, and restarts engines that die."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from engine import (
    Answer,
    CostModel,
    EngineDiedError,
    EnginePool,
    Finished,
    Generate,
    Started,
    State,
    WorkerConfig,
)
from engine.autopsy import cause_of_death
from engine.pool import BACKOFF
from engine.process import EngineProcess
from engine.shares import CoreShares
from tests.support.plans import MEASURED
from tests.support.pooling import ENDLESS, PROMPT, processes, run, until


@pytest.fixture
async def pool(tiny_model: Path) -> AsyncIterator[EnginePool]:
    pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=2, cores=2)
    yield pool
    await pool.close()


def open_files() -> set[int]:
    """Return the open file descriptors of this process."""
    return {int(path.name) for path in Path("/proc/self/fd").iterdir()}


async def test_an_engine_starts_when_it_is_first_needed(pool: EnginePool) -> None:
    assert [e.state for e in pool.engines] == [State.STOPPED, State.STOPPED]
    assert await run(pool, pool.engines[0], 1, 5) == (5, "length")
    assert [e.state for e in pool.engines] == [State.IDLE, State.STOPPED]


async def test_a_request_cancelled_during_a_load_does_not_cancel_the_load(pool: EnginePool) -> None:
    engine, _ = processes(pool)
    impatient = asyncio.create_task(run(pool, engine, 1, 5))
    await until(lambda: engine.state is State.LOADING)
    impatient.cancel()
    assert await run(pool, engine, 2, 5) == (5, "length")


async def test_one_busy_engine_uses_all_cores_and_two_share_them(pool: EnginePool) -> None:
    first = asyncio.create_task(run(pool, pool.engines[0], 1, 1500))
    await until(lambda: pool.engines[0].threads > 0)
    assert pool.engines[0].threads == 2
    assert await run(pool, pool.engines[1], 2, 200) == (200, "length")
    assert await first == (1500, "length")


async def test_a_killed_engine_is_restarted_without_a_request(pool: EnginePool) -> None:
    engine, _ = processes(pool)
    await run(pool, engine, 1, 2)
    running = asyncio.create_task(run(pool, engine, 2, 1900))
    await until(lambda: engine.state is State.BUSY)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError):
        await running
    await until(lambda: engine.state is State.IDLE)
    assert pool.restarts == {"0": 1, "1": 0}
    assert await run(pool, engine, 3, 5) == (5, "length")


async def test_a_restart_is_counted_once_when_a_request_comes_before_the_pools_restart(
    pool: EnginePool,
) -> None:
    engine, _ = processes(pool)
    await run(pool, engine, 1, 2)
    engine.kill("for this test")
    await until(lambda: engine.state is State.FAILED)
    assert await run(pool, engine, 2, 5) == (5, "length")
    assert pool.restarts == {"0": 1, "1": 0}
    await asyncio.sleep(BACKOFF[0])  # until the pool would have restarted it
    assert pool.restarts == {"0": 1, "1": 0}


def test_more_engines_than_cores_are_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 2"):
        EnginePool(WorkerConfig("m", 1, 1, MEASURED), count=3, cores=2)


async def test_an_idle_engine_is_unloaded_and_loaded_again_for_the_next_request(tiny_model: Path) -> None:
    pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=1, cores=2, idle_unload=0.05)
    maintenance = asyncio.create_task(pool.run())
    [engine] = processes(pool)
    for request in range(2):
        assert await run(pool, engine, request, 5) == (5, "length")
        await until(lambda: engine.state is State.STOPPED)
        assert engine.pid is None
    assert (pool.unloads, pool.restarts) == ({"0": 2}, {"0": 0})
    maintenance.cancel()
    await pool.close()


async def test_a_request_that_comes_while_its_engine_unloads_is_answered(pool: EnginePool) -> None:
    engine, _ = processes(pool)
    await run(pool, engine, 1, 2)
    for request in range(2, 6):
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0.002 * request)
        assert await run(pool, engine, request, 5) == (5, "length")
        await stopping


@asynccontextmanager
async def hung(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[EnginePool, EngineProcess, asyncio.Task[tuple[int, str]]]]:
    """Yield a pool that detects hangs after half a second, its only engine, stopped with SIGSTOP, and its request."""
    monkeypatch.setattr(CostModel, "deadline", lambda _: 0.5)
    pool = EnginePool(WorkerConfig(str(model), 2048, 8, MEASURED), count=1, cores=1)
    maintenance = asyncio.create_task(pool.run())
    [engine] = processes(pool)
    await run(pool, engine, 1, 2)
    running = asyncio.create_task(run(pool, engine, 2, 1900))
    await until(lambda: engine.threads > 0 and engine.state is State.BUSY)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    yield pool, engine, running
    maintenance.cancel()
    await pool.close()


async def test_a_hung_engine_is_killed_and_replaced(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hung(tiny_model, monkeypatch) as (pool, engine, running):
        with pytest.raises(EngineDiedError, match="did not answer within"):
            await running
        await until(lambda: engine.state is State.IDLE)
        assert await run(pool, engine, 3, 5) == (5, "length")


async def test_a_hung_engine_is_detected_although_it_is_sent_requests(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hung(tiny_model, monkeypatch) as (_, engine, running):
        while not running.done():
            engine.forget([99])
            await asyncio.sleep(0.05)
        with pytest.raises(EngineDiedError, match="did not answer within"):
            await running


async def test_an_engine_that_hangs_before_it_confirms_a_revocation_of_threads_is_detected(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CostModel, "deadline", lambda _: 0.5)
    pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=2, cores=2)
    maintenance = asyncio.create_task(pool.run())
    one, two = processes(pool)
    await pool.start(one)
    async with aclosing(pool.generate(one, Generate(1, PROMPT, 20, ENDLESS, "a"))) as messages:
        async for message in messages:
            if isinstance(message, Finished):
                assert one.pid is not None
                os.kill(one.pid, signal.SIGSTOP)  # it holds all threads, and sends nothing more
    async with asyncio.timeout(20):
        assert await run(pool, two, 2, 5) == (5, "length")
    maintenance.cancel()
    await pool.close()


async def test_an_engine_that_closes_its_socket_and_does_not_exit_is_killed_and_the_next_request_answered(
    pool: EnginePool,
) -> None:
    engine, _ = processes(pool)
    await run(pool, engine, 1, 2)
    running = asyncio.create_task(run(pool, engine, 2, 1900))
    await until(lambda: engine.state is State.BUSY)
    assert engine.pid is not None
    assert engine._connection._writer is not None
    os.kill(engine.pid, signal.SIGSTOP)
    engine._connection._writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    await until(lambda: engine._disconnected)
    assert await run(pool, engine, 3, 5) == (5, "length")
    with pytest.raises(EngineDiedError, match="closed its connection"):
        await running


def test_a_failed_start_with_too_many_open_files_leaves_none_open(tiny_model: Path) -> None:
    async def main() -> None:
        pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=1, cores=1)
        await run(pool, pool.engines[0], 1, 2)
        await processes(pool)[0].stop()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = open_files()
        free = sorted(set(range(len(taken) + 8)) - taken)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[5], hard))
        try:
            with pytest.raises(EngineDiedError, match="Too many open files"):
                await processes(pool)[0].start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(open_files()) <= len(taken)
        assert await run(pool, pool.engines[0], 2, 5) == (5, "length")
        await pool.close()

    uvloop.run(main())  # as `samovar serve` runs it


async def test_an_engine_that_dies_before_its_first_token_is_restarted_with_growing_delays(pool: EnginePool) -> None:
    engine, _ = processes(pool)

    async def die(request: Generate) -> AsyncIterator[Answer]:
        yield Started(request.request, 0)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.state is State.FAILED)
        raise EngineDiedError("engine 0: killed", requests=1)

    with capture_logs() as lines, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "generate", die)
        for request in range(3):
            with pytest.raises(EngineDiedError):
                await run(pool, engine, request, 5)
    delays = [line["again_in_seconds"] for line in lines if line["event"] == "engine failed"]
    assert delays == list(BACKOFF[:3])
    assert await run(pool, engine, 9, 5) == (5, "length")
    assert pool._failures["0"] == 0


async def test_a_closed_pool_starts_no_engine(pool: EnginePool) -> None:
    await run(pool, pool.engines[0], 1, 2)
    await pool.close()
    with pytest.raises(EngineDiedError, match="closed"):
        await pool.start(pool.engines[0])
    assert processes(pool)[0].pid is None


async def test_the_pool_reads_the_resource_usage_of_its_engines(
    pool: EnginePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pool.MAINTENANCE_SECONDS", 0.1)
    maintenance = asyncio.create_task(pool.run())
    await pool.start(pool.engines[0])
    await until(lambda: pool.usage["0"].resident > 0)
    assert pool.usage["1"].resident == 0
    assert pool.usage["0"].cpu_seconds > 0
    maintenance.cancel()


def test_the_cause_of_an_engines_death_is_a_class_and_quotes_nothing_from_its_stderr() -> None:
    secret = b"the prompt was: my password\n"
    assert "internal check" in cause_of_death(-6, secret + b"ggml.c:1: GGML_ASSERT(x) failed")
    assert cause_of_death(-6, secret + b"ggml.c:1: GGML_ASSERT(ctx->mem_buffer != NULL) failed") == "out of memory"
    assert "SIGKILL" in cause_of_death(-9, secret)
    assert cause_of_death(1, secret + b"ValueError: my password") == "internal error: ValueError"
    assert cause_of_death(3, secret) == "ended with status 3"


@given(
    cores=st.integers(1, 8),
    events=st.lists(st.one_of(st.sets(st.sampled_from("abcd")), st.sampled_from(["confirm", "lose"])), max_size=40),
)
def test_engines_never_use_more_threads_than_cores(cores: int, events: list[set[str] | str]) -> None:
    using: dict[str, int] = {}
    sent: list[tuple[str, int]] = []
    shares = CoreShares(cores, lambda name, threads: sent.append((name, threads)))
    for event in [*events, {"a", "b"}, *["confirm"] * 40]:
        if isinstance(event, set):
            shares.work(sorted(event))
        elif event == "confirm" and sent:
            name, using[name] = sent.pop(0)
            shares.confirm(name, using[name])
        elif event == "lose" and using:
            name = min(using)
            sent = [(other, n) for other, n in sent if other != name]
            del using[name]
            shares.lost(name)
        worst = {name: max([using.get(name, 0), *(n for other, n in sent if other == name)]) for name in "abcd"}
        assert sum(worst.values()) <= cores
    share = {name: n for name, n in using.items() if n}
    assert share == ({"a": cores - cores // 2, "b": cores // 2} if cores > 1 else {"a": 1})
