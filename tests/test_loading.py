"""Models that cannot be loaded, or not for a while: what is told, when it is tried again, and by whom."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from engine import (
    EngineDiedError,
    EnginePool,
    ModelLoadError,
    State,
    WorkerConfig,
    digest,
    mark,
)
from tests.plans import MEASURED
from tests.pooling import run, until


def write(path: Path, model: Path, *, size: int | None = None, more: bytes = b"") -> None:
    """The first `size` bytes of `model`, or all, and some more."""
    path.write_bytes(model.read_bytes()[:size] + more)


async def test_a_model_that_cannot_be_loaded_is_told_and_not_tried_in_a_loop(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    pool = EnginePool(WorkerConfig(str(path), 2048, 8, MEASURED), count=1, cores=1)
    [engine] = pool.engines
    for _ in range(2):
        with pytest.raises(ModelLoadError, match=r"bad\.gguf"):
            await run(pool, engine, 1, 5)
    assert "bad.gguf" in pool.failure
    assert pool.restarts == {"0": 0}
    await pool.close()


async def test_a_pool_with_engines_that_nobody_asked_yet_tells_that_its_model_cannot_be_loaded_until_it_can(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny_model, size=1000)
    pool = EnginePool(WorkerConfig(str(path), 2048, 8, MEASURED), count=2, cores=2)
    keeper = asyncio.create_task(pool.keep())
    with capture_logs() as lines, pytest.raises(ModelLoadError):
        await run(pool, pool.engines[0], 1, 5)
    assert [(line["event"], line["log_level"]) for line in lines] == [("model cannot be loaded", "error")]
    assert lines[0]["reason"] == pool.failure != ""
    assert pool.engines[1].state is State.STOPPED
    write(path, tiny_model)
    await until(lambda: not pool.failure)  # with no request, which a balancer would not send
    assert await run(pool, pool.engines[0], 2, 5) == (5, "length")
    keeper.cancel()
    await pool.close()


async def test_a_model_of_which_engines_die_while_they_load_it_is_not_tried_in_a_loop(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")  # ends before it says a word
    pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=1, cores=1)
    with pytest.raises(EngineDiedError):
        await run(pool, pool.engines[0], 1, 5)
    await until(lambda: pool.engines[0].load_failed)
    assert pool.restarts == {"0": 1}
    with pytest.raises(ModelLoadError):
        await run(pool, pool.engines[0], 2, 5)
    await pool.close()


async def test_what_could_not_be_loaded_for_a_while_is_loaded_then_though_nobody_asks_and_its_file_is_the_same(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pool.ROUND", 0.05)
    monkeypatch.setattr("engine.reloads.LATER", (0.3,))
    pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=1, cores=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")  # as if there were no memory
        with pytest.raises(EngineDiedError):
            await run(pool, pool.engines[0], 1, 5)
        await until(lambda: bool(pool.failure) and pool.engines[0].load_failed)
    keeper = asyncio.create_task(pool.keep())
    await until(lambda: not pool.failure and pool.engines[0].state is State.IDLE)
    assert pool.restarts == {"0": 1}, "a load that failed is no crash"
    keeper.cancel()
    await pool.close()


async def test_when_a_models_file_is_mended_all_engines_that_could_not_load_it_come_back(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pool.ROUND", 0.1)
    path = tmp_path / "model.gguf"
    write(path, tiny_model, size=1000)
    pool = EnginePool(WorkerConfig(str(path), 2048, 8, MEASURED), count=2, cores=2)
    for engine in pool.engines:
        with pytest.raises(ModelLoadError):
            await run(pool, engine, 1, 5)
    write(path, tiny_model)
    keeper = asyncio.create_task(pool.keep())
    await until(lambda: all(engine.state is State.IDLE for engine in pool.engines))
    keeper.cancel()
    await pool.close()


async def test_no_request_has_an_engine_try_again_while_another_serves(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny_model)
    pool = EnginePool(WorkerConfig(str(path), 2048, 8, MEASURED), count=2, cores=2)
    one, two = pool.engines
    await run(pool, one, 1, 5)
    path.unlink()  # or the file that it has mapped would end under it
    write(path, tiny_model, size=1000)
    for _ in range(2):
        with pytest.raises(ModelLoadError):
            await run(pool, two, 2, 5)
    assert pool._reloads._failures["1"] == 1
    assert await run(pool, one, 3, 5) == (5, "length")
    await pool.close()


async def test_another_model_in_the_place_of_the_first_is_not_taken_for_it(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny_model)
    config = WorkerConfig(str(path), 2048, 8, MEASURED, build={"model": digest(path)}, mark=mark(path))
    pool = EnginePool(config, count=1, cores=1)
    [engine] = pool.engines
    write(path, tiny_model)
    assert await run(pool, engine, 1, 5) == (5, "length"), "it was written anew, and is the same"
    await engine.stop()
    write(path, tiny_model, more=b"another")
    with pytest.raises(ModelLoadError, match=r"model\.gguf is another model"):
        await run(pool, engine, 2, 5)
    await pool.close()
