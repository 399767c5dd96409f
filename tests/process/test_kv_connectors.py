"""Background tasks continue after any error: the pool still maintains its engines."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from engine import EnginePool, State, WorkerConfig
from engine.resources import Meter
from gateway.config.background import run_forever
from tests.support.plans import MEASURED


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), AttributeError("pid")])
async def test_engines_are_unloaded_although_reading_their_usage_fails(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("engine.pool.MAINTENANCE_SECONDS", 0.05)
    monkeypatch.setattr("gateway.config.background.RESTART_SECONDS", 0.05)
    monkeypatch.setattr(Meter, "read", broken)
    pool = EnginePool(WorkerConfig(str(tiny_model), 2048, 8, MEASURED), count=1, cores=1, idle_unload=0.3)
    [engine] = pool.engines
    with capture_logs() as lines:
        maintenance = asyncio.create_task(run_forever("engines", pool.run))
        await pool.start(engine)
        async with asyncio.timeout(20):
            while engine.state is not State.STOPPED:  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.02)
    assert lines[0]["work"] == "engines"
    assert repr(error) == lines[0]["reason"]
    maintenance.cancel()
    with pytest.raises(asyncio.CancelledError):
        await maintenance
    await pool.close()
