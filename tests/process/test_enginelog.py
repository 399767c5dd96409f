"""The log reports when engines are loaded and unloaded."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from engine import WorkerConfig
from engine.process import EngineProcess
from gateway.observability.engine_log import EngineLog
from gateway.observability.stages import Stages
from tests.support.plans import MEASURED


async def test_loading_and_unloading_an_engine_logs_two_lines(tiny_model: Path) -> None:
    log = EngineLog()
    engine = EngineProcess("0", WorkerConfig(str(tiny_model), 512, 4, MEASURED), on_change=log.changed)
    with capture_logs() as lines:
        await engine.start()
        await engine.stop()
    assert [(line["event"], line["engine"]) for line in lines] == [("engine ready", "0"), ("engine stopped", "0")]
    ready = lines[0]
    assert 0 < ready["weights_seconds"] + ready["context_seconds"] < ready["seconds"] == round(engine.load_seconds, 3)


def test_a_start_is_logged_stage_by_stage() -> None:
    now = iter([10.0, 10.5, 12.0])
    stages = Stages(lambda: next(now))
    stages.done("vocabulary")
    stages.done("parts")
    assert stages.seconds == {"vocabulary_seconds": 0.5, "parts_seconds": 1.5}
