"""What the gateway learned about step times: saved, restored after a restart, shown, and ignored if it is damaged."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from engine import LearnedStep, LearningCostModel
from gateway.cli import main
from gateway.config.settings import Settings, load
from gateway.models import cost_models
from gateway.models.cost_models import MAX_BYTES, LearnedFile, save
from gateway.models.learned import LearnedSaver
from tests.support.plans import MEASURED
from tests.support.running import Gateway

NOW = 1_800_000_000.0
STEP = LearnedStep(engines=1, threads=2, kind="decode", rows=4, seconds=0.1, samples=12, at=NOW)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load({"state_dir": tmp_path, "cores": 2})


@pytest.fixture
def file(tiny_model: Path, settings: Settings) -> LearnedFile:
    return LearnedFile.of(tiny_model, settings)


@pytest.mark.slow
def test_what_was_learned_survives_a_restart_and_is_shown(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway(tmp_path, model=tiny_model, context=512, cores=2)
    with gateway:
        assert "以估计的运行方案开始" in gateway.greeting
        assert gateway.metric("samovar_cost_model_samples") == 0
        gateway.post("/v1/responses", {"input": "x", "max_output_tokens": 20})
        samples = gateway.metric("samovar_cost_model_samples")
    assert samples > 0
    [learned] = (tmp_path / "plans").iterdir()
    assert stat.S_IMODE(learned.stat().st_mode) == 0o600
    with gateway:
        assert "Engines use the plan learned on this machine" in gateway.greeting
        assert gateway.metric("samovar_cost_model_samples") >= samples
        assert gateway.metric("samovar_learned_step_seconds", kind="decode", rows="1") > 0
    assert main(["tune", f"--model={tiny_model}", f"--state-dir={tmp_path}", "--cores=2", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "plan: learned" in shown
    assert "decode 1" in shown


def test_the_file_gives_back_what_was_written(file: LearnedFile) -> None:
    assert file.read() == []
    file.write([STEP])
    assert file.read() == [STEP]


def _copied_from_another_machine(file: LearnedFile) -> None:
    other = LearnedFile(file.folder, cost_models.Key("digest", "build", "processor", 2))
    other.write([STEP])
    other.path.rename(file.path)


def _fifo(file: LearnedFile) -> None:
    file.path.unlink()
    os.mkfifo(file.path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.path.write_bytes(file.path.read_bytes()[:-9]), "truncated"),
        (lambda file: file.path.write_bytes(file.path.read_bytes().replace(b"0.1", b"-.1")), "JSON"),
        (lambda file: file.path.write_bytes(file.path.read_bytes().replace(b"0.1", b"0.0")), "> 0.0"),
        (lambda file: file.path.write_bytes(b" " * (MAX_BYTES + 1)), "larger than 1 MiB"),
        (_copied_from_another_machine, "another model"),
        (_fifo, "not a regular file"),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_one_line(
    file: LearnedFile, spoil: Callable[[LearnedFile], object], reason: str
) -> None:
    file.write([STEP])
    spoil(file)
    with capture_logs() as logs:
        assert file.read() == []
    [line] = logs
    assert (line["event"], line["log_level"]) == ("learned step times ignored", "warning")
    assert reason in line["reason"]


def test_a_plan_measured_later_replaces_what_was_learned(
    file: LearnedFile, tiny_model: Path, settings: Settings
) -> None:
    file.write([STEP])
    plan = save(MEASURED, tiny_model, settings)
    os.utime(plan, (NOW + 1, NOW + 1))
    assert file.read() == []
    os.utime(plan, (NOW - 1, NOW - 1))
    assert file.read() == [STEP]


def test_the_files_of_other_models_are_bounded(file: LearnedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_models, "MAX_FILES", 2)
    for number in range(4):
        LearnedFile(file.folder, cost_models.Key(str(number), "build", "processor", 2)).write([STEP])
    file.write([STEP])
    assert len(list(file.folder.iterdir())) == 2
    assert file.read() == [STEP]


async def test_nothing_is_written_as_long_as_nothing_was_learned(file: LearnedFile) -> None:
    costs = LearningCostModel(MEASURED)
    saver = LearnedSaver(costs, file)
    await saver.save()
    assert not file.path.exists()
    costs.observe(2, "decode", 4, 0.1)
    await saver.save()
    assert [step.samples for step in file.read()] == [1]


async def test_a_folder_that_cannot_be_written_is_logged_once(file: LearnedFile) -> None:
    file.folder.write_text("a file where the folder should be")
    costs = LearningCostModel(MEASURED)
    saver = LearnedSaver(costs, file)
    with capture_logs() as logs:
        for _ in range(3):
            costs.observe(2, "decode", 4, 0.1)
            await saver.save()
    assert [line["event"] for line in logs] == ["learned step times not saved"]
