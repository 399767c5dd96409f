"""When a model that could not be loaded is tried again, with files that are none and times that pass at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.reloads import LATER, Reloads


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until it is set."""
    time = [1000.0]
    monkeypatch.setattr("engine.reloads.time.monotonic", lambda: time[0])
    return time


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"broken")
    return path


def test_the_same_file_is_tried_later_and_later(model: Path, now: list[float]) -> None:
    reloads = Reloads(model)
    for wait in (*LATER, LATER[-1]):
        reloads.failed("0", pause=2.0)
        assert reloads.refuses("0")
        now[0] += wait - 1
        assert not reloads.refuses("0")
        assert reloads.due(["0"]) == []
        now[0] += 1
        assert reloads.due(["0"]) == ["0"]
        assert reloads.due(["0"]) == [], "it is being tried"
    reloads.loaded("0")
    reloads.failed("0", pause=2.0)
    now[0] += LATER[0]
    assert reloads.due(["0"]) == ["0"]


@pytest.mark.usefixtures("now")
def test_a_file_that_changed_is_tried_by_all_once_it_changes_no_more(model: Path) -> None:
    reloads = Reloads(model)
    for name in ("0", "1"):
        reloads.failed(name, pause=2.0)
    assert reloads.due(["0", "1"]) == []
    for size in range(1, 4):  # it is being copied
        model.write_bytes(bytes(size))
        assert reloads.due(["0", "1"]) == []
    assert reloads.due(["0", "1"]) == ["0", "1"]
    assert reloads.due(["0", "1"]) == []
    model.unlink()
    reloads.failed("0", pause=2.0)
    assert reloads.due(["0"]) == reloads.due(["0"]) == []
    model.write_bytes(b"a new one")
    assert [reloads.due(["0"]), reloads.due(["0"])] == [[], ["0"]]
