"""What lies in the state folder: for whose eyes, and how it is copied while the gateway runs, and restored."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config.settings import load
from gateway.models.cost_models import save
from tests import ROOT
from tests.support.plans import MEASURED
from tests.support.running import Gateway, said

BACKUP = ROOT / "deploy" / "backup.py"
ANSWER = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 5}
"""The tiny model says A."""


@pytest.fixture
def ordinary_umask() -> Iterator[None]:
    """A shell's, under which files are everybody's to read unless who makes them says otherwise."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def back_up(state: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as the documentation does."""
    return subprocess.run([sys.executable, str(BACKUP), state, folder], capture_output=True, text=True, check=False)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def open_to_others(folder: Path) -> list[str]:
    """Files whose own mode lets another user of the machine in, as if the folder let all in."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return sorted(path.name for path in files if path.stat().st_mode & 0o077)


def mode(folder: Path) -> int:
    """Who may look into it."""
    return folder.stat().st_mode & 0o777


@pytest.mark.slow
@pytest.mark.usefixtures("ordinary_umask")
async def test_a_backup_taken_while_turns_are_written_is_complete_and_serves_elsewhere(
    tmp_path: Path, tiny_model: Path
) -> None:
    state, settings = tmp_path / "state", {"model": tiny_model, "context": 512}
    with Gateway(state, **settings) as gateway:
        async with gateway.connect() as conversation:
            first = await conversation.ask("茶炊是什么?", **ANSWER)
            assert said(first) == "AAAAA"
            await conversation.send({"type": "response.create", "input": "More", **ANSWER, "max_output_tokens": 300})
            done = back_up(state, tmp_path / "backups")
            assert (done.returncode, done.stderr) == (0, "")
            await conversation.events()
    copy = Path(done.stdout.strip())
    assert names(copy) == ["cache.key", "conversations.db", "users.db"]
    assert open_to_others(copy) == []
    assert mode(copy) == 0o700
    shutil.rmtree(state)

    shutil.move(copy, state)
    with Gateway(state, **settings) as gateway:
        async with gateway.connect() as conversation:
            second = await conversation.ask("?", previous_response_id=first[-1].response.id, **ANSWER)
            assert second[-1].response.usage.input_tokens > first[-1].response.usage.total_tokens


@pytest.mark.slow
async def test_nothing_in_the_state_folder_is_for_other_users_of_the_machine(tmp_path: Path, tiny_model: Path) -> None:
    before = os.umask(0)
    try:
        with Gateway(tmp_path / "state", model=tiny_model, context=512) as gateway:
            async with gateway.connect() as conversation:
                await conversation.ask("A secret", **ANSWER)
            plan = save(MEASURED, tiny_model, load({"state_dir": gateway.state}))
            assert {mode(gateway.state), mode(plan.parent)} == {0o700}
            assert open_to_others(gateway.state) == []
            expected = {"cache.key", "conversations.db", "conversations.db-wal", "digests.json"}
            assert expected <= {*names(gateway.state)}
    finally:
        os.umask(before)


def test_a_folder_that_is_no_state_folder_is_reported_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = back_up(tmp_path / "nowhere", tmp_path / "backups")
    assert done.returncode == 1
    assert done.stderr.startswith("Nothing was backed up: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "backups").exists()
    assert subprocess.run([sys.executable, str(BACKUP)], capture_output=True, check=False).returncode == 2


def test_a_damaged_database_is_no_backup(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "conversations.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    done = back_up(state, tmp_path / "backups")
    assert done.returncode == 1
    assert "conversations.db" in done.stderr
    assert names(tmp_path / "backups") == []
