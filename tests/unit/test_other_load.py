"""Measurements notice other processes, and do not pass them over in silence."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from engine import Rate, bandwidth
from gateway.cli import main
from gateway.cli.figures import figure
from gateway.cli.language import Phrases
from gateway.cli.quantizing import TEXTS, _gain
from gateway.config.other_load import BUSY, OtherLoad, wait_until_idle


@contextmanager
def spinning() -> Iterator[psutil.Popen]:
    """Keep one core busy by another process."""
    process = psutil.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


class Load:
    """Other processes that use these cores, one value for each observation."""

    def __init__(self, values: list[float]) -> None:
        self._values = iter(values)

    def __call__(self) -> Load:
        return self

    def cores(self) -> float:
        return next(self._values)


def test_a_process_of_ones_own_is_no_other_load_even_after_its_end() -> None:
    observed, began = OtherLoad(), time.monotonic()
    with spinning() as process:
        time.sleep(0.5)
        spent = sum(process.cpu_times()[:2])
    total, ours = sum(psutil.cpu_times()), observed.cores() * (time.monotonic() - began)
    assert spent > 0.05
    assert ours < total
    children = sum(psutil.Process().cpu_times()[2:4])
    assert children >= spent, "the ended child's time belongs to this process"


def test_a_foreign_process_is_other_load(monkeypatch: pytest.MonkeyPatch) -> None:
    with spinning():
        monkeypatch.setattr(psutil.Process, "children", lambda *_, **__: [])
        observed = OtherLoad()
        time.sleep(0.5)
        assert observed.cores() > BUSY


@pytest.mark.parametrize(
    ("values", "result", "reported"),
    [([0.0], 0.0, []), ([1.2, 0.05], 0.05, [1.2]), ([1.2, 0.9, 0.8], 0.8, [1.2, 0.9])],
)
def test_waiting_ends_when_others_are_idle_or_time_is_over(
    values: list[float], result: float, reported: list[float]
) -> None:
    seen: list[float] = []
    assert wait_until_idle(3.0, seen.append, load=Load(values), sleep=lambda _: None) == result  # type: ignore[arg-type]
    assert seen == reported


def test_tune_refuses_to_measure_beside_others_unless_forced(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.cli.idle_machine.wait_until_idle", lambda *_: 1.3)
    command = ["tune", f"--model={tiny_model}", f"--state-dir={tmp_path}", "--cores=1", "--budget=1"]
    assert main(command) == 1
    assert "other processes keep 1.3 of 1 cores busy" in capsys.readouterr().err
    assert not (tmp_path / "plans").exists()
    assert main([*command, "--force"]) == 0
    assert "memory bandwidth: " in capsys.readouterr().out
    assert (tmp_path / "plans").exists()


def test_tune_saves_no_plan_that_others_disturbed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.cli.idle_machine.wait_until_idle", lambda *_: 0.0)
    monkeypatch.setattr(OtherLoad, "cores", lambda _: 0.7)
    assert main(["tune", f"--model={tiny_model}", f"--state-dir={tmp_path}", "--cores=1", "--budget=1"]) == 1
    out, err = capsys.readouterr()
    assert "total tokens per second" in out.lower()
    assert "not saved: other processes kept 0.7 cores busy" in err
    assert not (tmp_path / "plans").exists()


def test_a_gain_within_the_spread_is_not_distinguishable() -> None:
    say = Phrases(TEXTS, chinese=False)
    assert _gain(say, Rate(4, 4, 6), Rate(1, 0, 8)) == "not distinguishable"
    assert _gain(say, Rate(4, 4, 6), Rate(9, 8, 10)) == "× 2.25"


def test_figures_below_ten_have_a_decimal() -> None:
    assert [figure(value) for value in (0, 0.29, 4.04, 9.94, 9.96, 48.3)] == ["0", "0.3", "4.0", "9.9", "10", "48"]


def test_bandwidth_is_measured() -> None:
    assert 1e8 < bandwidth(1) < 1e12
