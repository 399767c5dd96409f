"""`samovar tune`: measure, show, draw and save the plan that serve uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine import WIDEST
from gateway.cli import main
from gateway.cli.curves import STEP, curves
from gateway.config.settings import load
from gateway.models.cost_models import planned, save
from tests.support.plans import MEASURED

PNG = b"\x89PNG"


@pytest.fixture
def flags(tiny_model: Path, tmp_path: Path) -> list[str]:
    return [f"--model={tiny_model}", f"--state-dir={tmp_path}", "--cores=1"]


def test_a_plan_is_measured_shown_drawn_and_used(
    flags: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load({"model": str(tiny_model), "state_dir": tmp_path, "cores": 1})
    assert main(["tune", *flags, "--show"]) == 0
    assert "plan: estimated (run samovar tune to measure)" in capsys.readouterr().out
    assert not planned(tiny_model, settings).measured
    assert main(["tune", *flags, "--budget=1", "--force", f"--picture={tmp_path}/plan.png"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"tiny on 1 cores, plan: measured", said)
    assert "1 × 1 threads" in said
    assert (tmp_path / "plan.png").read_bytes().startswith(PNG)
    assert planned(tiny_model, settings).measured
    other_cores = load({"model": str(tiny_model), "state_dir": tmp_path, "cores": 2})
    assert not planned(tiny_model, other_cores).measured
    assert main(["tune", *flags, "--show"]) == 0
    shown = capsys.readouterr().out
    assert "plan: measured" in shown
    assert "a digit is a number of engines" in shown


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--budget=0", "between 1 and 3600"),
        ("--picture=plan.gif", "must end in .svg or .png"),
        ("--model=nothing.gguf", "nothing.gguf"),
    ],
)
def test_an_error_of_tune_is_one_line(
    flags: list[str], wrong: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["tune", *flags, "--show", wrong])
    except SystemExit as left:  # argparse exits this way
        status = int(left.code or 0)
    assert status in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_damaged_plan_file_is_ignored(flags: list[str], tiny_model: Path, tmp_path: Path) -> None:
    assert main(["tune", *flags, "--budget=1", "--force"]) == 0
    [file] = (tmp_path / "plans").iterdir()
    file.write_text("{")
    assert not planned(tiny_model, load({"model": str(tiny_model), "state_dir": tmp_path, "cores": 1})).measured


def test_a_plan_covers_all_engines_even_if_fewer_are_set_now(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.cli.tuning.measure", lambda *_, engines, **__: MEASURED.limited(engines))
    assert (
        main(["tune", f"--model={tiny_model}", f"--state-dir={tmp_path}", "--cores=2", "--engines=1", "--force"]) == 0
    )
    assert "2 × 1 threads" not in capsys.readouterr().out
    assert planned(tiny_model, load({"state_dir": tmp_path, "cores": 2})) == MEASURED


def test_a_plan_of_fewer_engines_than_may_run_is_not_used(tiny_model: Path, tmp_path: Path) -> None:
    settings = load({"model": str(tiny_model), "state_dir": tmp_path, "cores": 2})
    save(MEASURED.limited(1), tiny_model, settings)
    assert not planned(tiny_model, settings).measured
    assert planned(tiny_model, load({"state_dir": tmp_path, "cores": 2, "engines": 1})).measured


def test_a_plan_of_another_model_build_cpu_or_core_count_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change each alone. The plan has two engines, so that it is not rejected for having too few."""
    model, settings = tmp_path / "model.gguf", load({"state_dir": tmp_path, "cores": 2, "engines": 1})
    model.write_bytes(b"one")
    save(MEASURED, model, settings)

    def measured() -> bool:
        return planned(model, settings).measured

    assert measured()
    assert not planned(model, settings.model_copy(update={"cores": 1})).measured
    for what, other in (
        ("gateway.models.cost_models.processor", lambda: "another processor"),
        ("gateway.models.cost_models.version", lambda _: "another version"),
        ("engine.build_features", lambda: {"AVX9"}),
    ):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(what, other)
            assert not measured(), what
        assert measured()
    model.write_bytes(b"two")
    assert not measured()
    model.write_bytes(b"one")
    assert measured()


def test_the_curves_show_the_speed_of_each_number_of_engines_with_the_chosen_one_in_bold() -> None:
    lines = list(curves(MEASURED))
    assert lines[-1].plain.split() == [str(n) for n in range(1, WIDEST + 1)]
    for n in range(1, WIDEST + 1):
        column = len(lines[-1]) - 1 - STEP * (WIDEST - n)
        rows = {line.plain[column]: row for row, line in enumerate(lines[:-2]) if line.plain[column] != " "}
        spans = [(line, span) for line in lines for span in line.spans if span.start == column]
        bold = {line.plain[column] for line, span in spans if "bold" in str(span.style)}
        chosen = MEASURED.engines(n, working=0)
        assert bold == {str(chosen)}
        assert rows[str(chosen)] == min(rows.values())  # the fastest is the highest


@pytest.mark.usefixtures("killed_stopwatch")
def test_a_process_that_is_killed_while_it_measures_is_reported_in_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *flags, "--budget=1", "--force"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("samovar: the measuring process ended during a measurement (SIGKILL)")
    assert error.count("\n") == 1
