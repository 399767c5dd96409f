"""`samovar serve`: what it says when it listens."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from gateway.plans import save
from gateway.settings import load
from tests.plans import MEASURED
from tests.running import CHILD_ENVIRONMENT, SAMOVAR

ASSUMED = (
    "by an ordinary machine's plan; `samovar tune` measures this one",
    "按一般机器的方案工作；运行 samovar tune 可测量本机",
)
HERE = "by the plan that was measured here", "按本机实测的方案工作"


def told(state: Path, model: Path) -> str:
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
    before = told(tmp_path, tiny_model)
    assert all(words in before for words in ASSUMED)
    assert not any(words in before for words in HERE)
    save(MEASURED, tiny_model, load({"state_dir": tmp_path, "cores": 2}))
    after = told(tmp_path, tiny_model)
    assert all(words in after for words in HERE)
    assert not any(words in after for words in ASSUMED)
