"""Models that can't be loaded, permanently or for a while: what the pool reports, and when a load is retried."""

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
from tests.support.plans import MEASURED
from tests.support.pooling import processes, run, until


def write(path: Path, model: Path, *, size: int | None = None, more: bytes = b"") -> None:
    """Return the first `size` bytes of `model`, or all, with other bytes appended."""
    path.write_bytes(model.read_bytes()[:size] + more)


async def test_a_failed_load_is_reported_and_not_retried_at_once(tmp_path: Path) -> None:
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


async def test_a_pool_with_unused_engines_reports_a_failed_load_until_a_load_succeeds(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny_model, size=1000)
    pool = EnginePool(WorkerConfig(str(path), 2048, 8, MEASURED), count=2, cores=2)
    maintenance = asyncio.create_task(pool.run())
    with capture_logs() as lines, pytest.raises(ModelLoadError):
        await run(pool, pool.engines[0], 1, 5)
    assert [(line["event"], line["log_level"]) for line in lines] == [("model cannot be loaded", "error")]
    assert lines[0]["reason"] == pool.failure != ""
    assert pool.engines[1].state is State.STOPPED
    write(path, tiny_model)
    await until(lambda: not pool.failure)  # without a request, because a load balancer would send none
    assert await run(pool, pool.engines[0], 2, 5) == (5, "length")
    maintenance.cancel()
    await pool.close()


async def test_a_model_that_crashes_engines_during_the_load_is_not_retried_at_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")  # exits without a message
    pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=1, cores=1)
    with pytest.raises(EngineDiedError):
        await run(pool, pool.engines[0], 1, 5)
    await until(lambda: pool.engines[0].load_failed)
    assert pool.restarts == {"0": 1}
    with pytest.raises(ModelLoadError):
        await run(pool, pool.engines[0], 2, 5)
    await pool.close()


async def test_a_failed_load_is_retried_later_without_a_request_and_with_an_unchanged_file(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pool.MAINTENANCE_SECONDS", 0.05)
    monkeypatch.setattr("engine.reloads.RETRY_DELAYS", (0.3,))
    pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=1, cores=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")  # simulates a lack of memory
        with pytest.raises(EngineDiedError):
            await run(pool, pool.engines[0], 1, 5)
        await until(lambda: bool(pool.failure) and pool.engines[0].load_failed)
    maintenance = asyncio.create_task(pool.run())
    await until(lambda: not pool.failure and pool.engines[0].state is State.IDLE)
    assert pool.restarts == {"0": 1}, "a load that failed is no crash"
    maintenance.cancel()
    await pool.close()


async def test_all_engines_that_could_not_load_a_model_retry_when_its_file_changes(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pool.MAINTENANCE_SECONDS", 0.1)
    path = tmp_path / "model.gguf"
    write(path, tiny_model, size=1000)
    pool = EnginePool(WorkerConfig(str(path), 2048, 8, MEASURED), count=2, cores=2)
    for engine in pool.engines:
        with pytest.raises(ModelLoadError):
            await run(pool, engine, 1, 5)
    write(path, tiny_model)
    maintenance = asyncio.create_task(pool.run())
    await until(lambda: all(engine.state is State.IDLE for engine in pool.engines))
    maintenance.cancel()
    await pool.close()


async def test_no_request_retries_a_failed_load_while_another_engine_is_loaded(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny_model)
    pool = EnginePool(WorkerConfig(str(path), 2048, 8, MEASURED), count=2, cores=2)
    one, two = pool.engines
    await run(pool, one, 1, 5)
    path.unlink()  # a truncated file would crash the engine that has mapped it
    write(path, tiny_model, size=1000)
    for _ in range(2):
        with pytest.raises(ModelLoadError):
            await run(pool, two, 2, 5)
    assert pool._reloads._failures["1"] == 1
    assert await run(pool, one, 3, 5) == (5, "length")
    await pool.close()


async def test_a_model_file_replaced_by_another_model_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny_model)
    config = WorkerConfig(str(path), 2048, 8, MEASURED, build={"model": digest(path)}, mark=mark(path))
    pool = EnginePool(config, count=1, cores=1)
    [engine] = pool.engines
    write(path, tiny_model)
    assert await run(pool, engine, 1, 5) == (5, "length"), "the file was rewritten with the same content"
    await processes(pool)[0].stop()
    write(path, tiny_model, more=b"another")
    with pytest.raises(ModelLoadError, match=r"model\.gguf is another model"):
        await run(pool, engine, 2, 5)
    await pool.close()
