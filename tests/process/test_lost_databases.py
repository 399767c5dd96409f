"""Databases that are removed or replaced while a gateway runs: no turn is lost, and no caller gets in without a key."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from cache import Archive, Database, KeyMismatchError, KeyRing, Progress, StoreError
from gateway.auth.registry import EVERY
from gateway.auth.users import RECORD, Users, exist
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway
from tests.support.stored_state import unpack

SCHEMA = "CREATE TABLE IF NOT EXISTS words (word TEXT NOT NULL) STRICT;"
ANSWER = {"input": "x", "max_output_tokens": 2}


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """An open file with one word, which is still in its log."""
    opened = Database(tmp_path / "state" / "words.db", SCHEMA)
    await write(opened, "first")
    yield opened
    opened.close()


async def write(database: Database, word: str) -> None:
    """Acknowledge a word."""
    await database.run("INSERT INTO words VALUES (?)", (word,))


def words(path: Path) -> list[str]:
    """What a program that starts now finds."""
    with closing(sqlite3.connect(path)) as connection:
        return [word for (word,) in connection.execute("SELECT word FROM words")]


def remove(path: Path) -> None:
    """Remove a database and its log files."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


async def test_what_is_acknowledged_after_a_file_was_removed_lies_in_the_new_one(
    tmp_path: Path, database: Database
) -> None:
    remove(tmp_path / "state" / "words.db")
    with capture_logs() as logs:
        await write(database, "second")
        await write(database, "third")
    assert words(tmp_path / "state" / "words.db") == ["second", "third"]
    assert [(line["log_level"], line["file"]) for line in logs] == [("error", "words.db")]


async def test_a_backup_that_takes_the_place_of_an_open_file_is_not_damaged_by_the_old_ones_log(
    tmp_path: Path, database: Database
) -> None:
    path, backup = tmp_path / "state" / "words.db", tmp_path / "backup.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"VACUUM INTO '{backup}'")
    for n in range(100):
        await write(database, f"later {n}")
    backup.rename(path)
    await write(database, "last")
    assert words(path) == ["first", "last"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_file_that_is_no_database_fails_every_use_until_one_is_there_again(
    tmp_path: Path, database: Database
) -> None:
    path = tmp_path / "state" / "words.db"
    (tmp_path / "junk").write_bytes(b"junk" * 5000)
    (tmp_path / "junk").rename(path)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"words\.db"):
            await write(database, "lost")
        assert not database.is_open
    path.unlink()
    await write(database, "second")
    assert words(path) == ["second"]


async def test_nothing_is_written_into_a_folder_that_took_the_place_of_the_state_folder(
    tmp_path: Path, database: Database
) -> None:
    """As when its volume is not mounted any more."""
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    (tmp_path / "state").mkdir()
    with pytest.raises(StoreError, match=r"the folder .* was removed or replaced"):
        await write(database, "lost")
    assert list((tmp_path / "state").iterdir()) == []


async def test_conversations_of_another_key_are_not_taken_for_ours_while_we_run(tmp_path: Path) -> None:
    ours = Archive(tmp_path / "c.db", KeyRing.new(), ttl=None)
    Archive(tmp_path / "other.db", KeyRing.new(), ttl=None).close()
    (tmp_path / "other.db").rename(tmp_path / "c.db")
    with pytest.raises(KeyMismatchError):
        await ours.put("alice", "resp_1", b"hello", Progress.ENDED)
    ours.close()


@pytest.mark.slow
def test_a_turn_after_the_removal_of_conversations_db_is_there_after_a_restart(tiny_server: Gateway) -> None:
    tiny_server.post("/v1/responses", ANSWER).raise_for_status()
    remove(tiny_server.state / "conversations.db")
    response = tiny_server.post("/v1/responses", ANSWER).raise_for_status().json()["id"]
    tiny_server.stop()
    tiny_server.start()
    assert tiny_server.get(f"/v1/responses/{response}").status_code == 200
    assert "was replaced or removed" in tiny_server.log()


def keys(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`samovar keys`."""
    command = [*SAMOVAR, "keys", *arguments, f"--state-dir={state}"]
    return subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=False)


async def status(gateway: Gateway, key: str | None, wanted: int) -> str:
    """The code of the error once `/v1/models` answers as `wanted`."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for _ in range(200):
        answer = await asyncio.to_thread(gateway.get, "/v1/models", **headers)
        if answer.status_code == wanted:
            return str(answer.json().get("error", {}).get("code", ""))
        await asyncio.sleep(0.05)
    raise AssertionError(f"it stays {answer.status_code}")


@pytest.mark.slow
async def test_a_gateway_that_lost_its_users_rejects_all_requests_until_they_are_restored(
    tmp_path: Path, tiny_model: Path
) -> None:
    state = tmp_path / "state"
    key = unpack(state).key
    shutil.copy(state / "users.db", tmp_path / "backup.db")
    with Gateway(state, model=tiny_model, context=512) as gateway:
        await status(gateway, key, 200)
        remove(state / "users.db")
        for who in (key, None):
            assert await status(gateway, who, 503) == "store_unavailable"
        for path in ("/v1/models", "/readyz"):
            assert gateway.get(path).status_code == 503
            assert str(state) not in gateway.get(path).text
        await asyncio.sleep(2.5 * EVERY)
        assert gateway.log().count("users.db can't be used") == 1
        refused = keys(state, "add", "bob")
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
        assert RECORD in refused.stderr
        remove(state / "users.db")
        shutil.copy(tmp_path / "backup.db", state / "users.db")
        await status(gateway, key, 200)
        assert gateway.get("/readyz").json() == {"status": "ready"}
        (tmp_path / "junk").write_bytes(b"junk" * 5000)
        (tmp_path / "junk").rename(state / "users.db")
        assert await status(gateway, key, 503) == "store_unavailable"


@pytest.mark.slow
@pytest.mark.parametrize("emptied", [False, True])
def test_a_gateway_that_had_keys_does_not_start_without_them(
    tmp_path: Path, tiny_model: Path, *, emptied: bool
) -> None:
    state = tmp_path / "state"
    keys(state, "add", "anna")
    remove(state / "users.db")
    if emptied:
        Users(state).close()
    command = [*SAMOVAR, "serve", f"--state-dir={state}", f"--model={tiny_model}", "--port=0"]
    refused = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "restore" in refused.stderr
    assert RECORD in refused.stderr
    (state / RECORD).unlink()
    assert not asyncio.run(exist(state))


async def test_a_gateway_that_never_had_a_key_has_no_record_of_one(tmp_path: Path) -> None:
    users = Users(tmp_path)
    assert await users.all() == []
    await users.check()
    assert not (tmp_path / RECORD).exists()
    await users.add("anna")
    await users.revoke("anna")
    assert (tmp_path / RECORD).stat().st_mode & 0o777 == 0o600
    users.close()
