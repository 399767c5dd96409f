"""The backup's command tells what it could not copy."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from deploy.backup import main


def test_a_key_outside_the_backup_is_reported_because_the_backup_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.umask", lambda _: 0o022)  # of this whole process
    state = tmp_path / "state"
    state.mkdir()
    sqlite3.connect(state / "conversations.db").close()
    (state / "conversations.db").touch()
    assert main([str(state), str(tmp_path / "backups")]) == 0
    assert "cache_key" in capsys.readouterr().err
    (state / "cache.key").write_text("smk_\n")
    assert main([str(state), str(tmp_path / "others")]) == 0
    assert capsys.readouterr().err == ""
