"""docs/configuration.md matches the current settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.documentation import EXAMPLE, markdown
from gateway.config.settings import Settings, load
from tests import ROOT

PAGE = ROOT / "docs" / "configuration.md"


def test_the_page_is_what_the_settings_are_now() -> None:
    assert PAGE.read_text("utf-8") == markdown(), "the settings changed: run `make docs`"


def test_every_setting_has_its_line_with_default_bounds_and_meaning() -> None:
    lines = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == list(Settings.model_fields)
    assert [line for line in lines if line.endswith("|  |")] == []
    [limit] = [line for line in lines if line.startswith("| `queue_limit`")]
    assert limit == "| `queue_limit` | 64 | 0 – 100000 | maximum number of waiting requests |"


def test_the_example_is_a_file_that_can_be_served_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samovar.toml").write_text(EXAMPLE, "utf-8")
    settings = load({"cores": "1"})
    assert settings.memory == 4 << 30
    assert settings.aliases == {"gpt-4o-mini": settings.model}
