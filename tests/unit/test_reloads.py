"""Retries of failed loads, with invalid model files and a simulated clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.reloads import RETRY_DELAYS, Reloads


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    time = [1000.0]
    monkeypatch.setattr("engine.reloads.time.monotonic", lambda: time[0])
    return time


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"broken")
    return path


def test_an_unchanged_file_is_retried_with_growing_delays(model: Path, now: list[float]) -> None:
    reloads = Reloads(model)
    for wait in (*RETRY_DELAYS, RETRY_DELAYS[-1]):
        reloads.failed("0", pause=2.0)
        assert reloads.refuses("0")
        now[0] += wait - 1
        assert not reloads.refuses("0")
        assert reloads.due(["0"]) == []
        now[0] += 1
        assert reloads.due(["0"]) == ["0"]
        assert reloads.due(["0"]) == [], "the retry is running"
    reloads.loaded("0")
    reloads.failed("0", pause=2.0)
    now[0] += RETRY_DELAYS[0]
    assert reloads.due(["0"]) == ["0"]


@pytest.mark.usefixtures("now")
def test_a_changed_file_is_retried_by_all_engines_once_it_is_stable(model: Path) -> None:
    reloads = Reloads(model)
    for name in ("0", "1"):
        reloads.failed(name, pause=2.0)
    assert reloads.due(["0", "1"]) == []
    for size in range(1, 4):  # the file is being copied
        model.write_bytes(bytes(size))
        assert reloads.due(["0", "1"]) == []
    assert reloads.due(["0", "1"]) == ["0", "1"]
    assert reloads.due(["0", "1"]) == []
    model.unlink()
    reloads.failed("0", pause=2.0)
    assert reloads.due(["0"]) == reloads.due(["0"]) == []
    model.write_bytes(b"a new one")
    assert [reloads.due(["0"]), reloads.due(["0"])] == [[], ["0"]]
