"""`samovar serve`: the port that it takes, and what it says when it listens."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.cli import CommandError
from gateway.cli.serve import _listen
from gateway.config.settings import load
from gateway.models.cost_models import save
from tests.support.plans import MEASURED
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway

ASSUMED = "start with an estimated plan", "以估计的运行方案开始"
HERE = "use the plan measured on this machine", "使用本机实测的运行方案"


def reported(state: Path, model: Path) -> str:
    """All that it prints, from its start to its end."""
    command = [*SAMOVAR, "serve", "--port=0", f"--state-dir={state}", f"--model={model}", "--cores=2", "--context=512"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=CHILD_ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        return first + process.stdout.read()


@pytest.mark.slow
def test_it_says_in_both_languages_whether_it_works_by_a_plan_that_was_measured_here(
    tmp_path: Path, tiny_model: Path
) -> None:
    before = reported(tmp_path, tiny_model)
    assert all(words in before for words in ASSUMED)
    assert not any(words in before for words in HERE)
    assert "A conversation may hold 512 tokens" in before
    save(MEASURED, tiny_model, load({"state_dir": tmp_path, "cores": 2}))
    after = reported(tmp_path, tiny_model)
    assert all(words in after for words in HERE)
    assert not any(words in after for words in ASSUMED)


def test_a_port_is_taken_before_anything_is_loaded() -> None:
    with _listen(load({"port": 0})) as first:
        port = first.getsockname()[1]
        with pytest.raises(CommandError, match=f"port: 127.0.0.1:{port} can't be used: Address already in use"):
            _listen(load({"port": port}))


def test_the_models_are_listed_when_their_file_is_gone(tmp_path: Path, tiny_model: Path) -> None:
    file = Path(shutil.copy(tiny_model, tmp_path / "gone.gguf"))
    with Gateway(tmp_path / "state", model=file, context=512) as gateway:
        before = gateway.get("/v1/models")
        file.unlink()
        after = gateway.get("/v1/models")
    assert (after.status_code, after.json()) == (200, before.json())
    assert [model["id"] for model in after.json()["data"]] == ["gone"]


@pytest.mark.parametrize("library", ["pydantic_core", "uvloop"])
def test_ctrl_c_before_the_gateway_listens_ends_it_without_a_word(
    tmp_path: Path, tiny_model: Path, library: str
) -> None:
    """`library` is loaded while the command line, or later the command, is being imported."""
    command = [sys.executable, "-m", "gateway", "serve", "--port=0", f"--state-dir={tmp_path}", f"--model={tiny_model}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=CHILD_ENVIRONMENT) as process:
        try:
            while process.poll() is None and library not in Path(f"/proc/{process.pid}/maps").read_text():
                time.sleep(0.001)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60)[1] == ""
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGINT
