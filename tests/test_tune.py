"""`samovar tune`: measures, shows, draws and saves the plan that serve then uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.plans import planned
from gateway.settings import load

PNG = b"\x89PNG"


@pytest.fixture
def flags(tiny_model: Path, tmp_path: Path) -> list[str]:
    return [f"--model={tiny_model}", f"--state-dir={tmp_path}", "--cores=1"]


def test_a_plan_is_measured_shown_drawn_and_used(
    flags: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load({"model": str(tiny_model), "state_dir": tmp_path, "cores": 1})
    assert main(["tune", *flags, "--show"]) == 0
    assert "not measured here" in capsys.readouterr().out
    assert not planned(tiny_model, settings).measured
    assert main(["tune", *flags, "--budget=1", f"--picture={tmp_path}/plan.png"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"tiny on 1 cores: measured plan", said)
    assert "1 × 1 threads" in said
    assert (tmp_path / "plan.png").read_bytes().startswith(PNG)
    assert planned(tiny_model, settings).measured
    other_cores = load({"model": str(tiny_model), "state_dir": tmp_path, "cores": 2})
    assert not planned(tiny_model, other_cores).measured
    assert main(["tune", *flags, "--show"]) == 0
    assert "measured plan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--budget=0", "between 1 and 3600"),
        ("--picture=plan.gif", "must end in .svg or .png"),
        ("--model=nothing.gguf", "nothing.gguf"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    flags: list[str], wrong: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["tune", *flags, "--show", wrong])
    except SystemExit as left:  # argparse's way
        status = int(left.code or 0)
    assert status in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_plan_file_that_is_broken_is_as_good_as_none(flags: list[str], tiny_model: Path, tmp_path: Path) -> None:
    assert main(["tune", *flags, "--budget=1"]) == 0
    [file] = (tmp_path / "plans").iterdir()
    file.write_text("{")
    assert not planned(tiny_model, load({"model": str(tiny_model), "state_dir": tmp_path, "cores": 1})).measured
