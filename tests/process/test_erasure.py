"""`samovar keys delete NAME --data` erases a user at all gateways: conversations, turns, copies, KV blocks, usage."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from cache import KeyRing, Ledger
from gateway.auth.users import UserError, Users
from gateway.cli import main
from tests.process.test_conversations import ANSWER, say, start
from tests.support.redis_server import RedisServer
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway


def keys(state: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `samovar keys`."""
    command = [*SAMOVAR, "keys", *arguments, f"--state-dir={state}"]
    return subprocess.run(command, env={**CHILD_ENVIRONMENT, **environment}, capture_output=True, text=True, check=True)


def rows(state: Path) -> dict[str, int]:
    """Number of turns and of living conversations by tenant."""
    query = "SELECT tenant FROM records WHERE progress < 3 UNION ALL SELECT tenant FROM documents WHERE gone = 0"
    with closing(sqlite3.connect(state / "conversations.db")) as connection:
        found = [tenant for (tenant,) in connection.execute(query)]
    return {tenant: found.count(tenant) for tenant in found}


def blocks(state: Path) -> int:
    """Number of KV blocks on disk."""
    path = state / "blocks.db"
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM blocks").fetchone()[0])


def until(true: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    for _ in range(200):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def test_all_data_of_a_user_is_erased_and_that_of_others_stays(tmp_path: Path, tiny_model: Path) -> None:
    office = start(tmp_path, tiny_model)
    state = office.gateway.state
    with office:
        say(office.client(1), office.client(1).conversations.create().id, "I stay")
        office.gateway.stop()  # once all blocks are written
        others = blocks(state)
        assert others > 0
        office.gateway.start()
        client = office.client()
        say(client, client.conversations.create().id, "erase me " * 40)
        client.responses.create(input="a turn without a conversation", **ANSWER)
        messages: Any = [{"role": "user", "content": "a stateless client " * 10}]
        client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=3)
        until(lambda: blocks(state) > others)
        assert len(rows(state)) == 2
        done = keys(state, "delete", "anna", "--data")
        assert "is erased at this gateway" in done.stderr
        assert list(rows(state).values()) == [2]
        until(lambda: blocks(state) <= others)
        assert office.http("GET", "/v1/models").status_code == 401
        assert office.http("GET", "/v1/conversations", 1).json()["data"]
        listed = json.loads(keys(state, "list", "--json").stdout)
        assert [user["name"] for user in listed] == ["bert"]
        keys(state, "add", "anna")
        listed = json.loads(keys(state, "list", "--json").stdout)
        assert [(user["name"], user["requests"]) for user in listed] == [("anna", 0), ("bert", 1)]


async def test_an_erased_user_is_known_to_no_list(tmp_path: Path) -> None:
    users = Users(tmp_path)
    await users.add("anna")
    tenant = await users.erase("anna")
    assert await users.erasures.pending() == [tenant]
    assert await users.all_with_total_usage() == []
    with pytest.raises(UserError, match="there is no user anna"):
        await users.erase("anna")
    await users.finish_erasure(tenant)
    assert await users.erasures.pending() == []
    users.close()


def test_data_is_deleted_only_on_confirmation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "delete", "anna", f"--state-dir={tmp_path}"])
    assert "--data" in capsys.readouterr().err


@pytest.mark.slow
def test_a_user_is_erased_at_gateways_that_were_away(tmp_path: Path, tiny_model: Path) -> None:
    secret = KeyRing.new()
    (tmp_path / "cache.key").write_text(secret.text)

    async def make_key() -> str:
        ledger = Ledger(server.url, secret)
        users = Users(tmp_path / "a", ledger=ledger)
        key = await users.add("anna")
        users.close()
        ledger.close()
        return key

    with RedisServer(tmp_path) as server:
        shared = {"model": tiny_model, "context": 512, "cache": server.url, "cache_key": tmp_path / "cache.key"}
        headers = {"Authorization": f"Bearer {asyncio.run(make_key())}"}
        with Gateway(tmp_path / "a", **shared) as here, Gateway(tmp_path / "b", **shared) as away:
            made = httpx.post(f"{here.url}/v1/conversations", json={}, headers=headers).json()
            body = {"input": "erase me", "conversation": made["id"], "max_output_tokens": 3}
            assert httpx.post(f"{here.url}/v1/responses", json=body, headers=headers, timeout=60).status_code == 200
            until(lambda: sum(rows(tmp_path / "b").values()) == 2)  # it has the conversation and its turn
            away.stop()
            environment = {"SAMOVAR_CACHE_KEY": str(tmp_path / "cache.key")}
            done = keys(tmp_path / "a", "delete", "anna", "--data", f"--cache={server.url}", **environment)
            assert "is erased at this gateway" in done.stderr
            assert rows(tmp_path / "a") == {}
            assert rows(tmp_path / "b") != {}
            away.start()
            until(lambda: rows(tmp_path / "b") == {})
            with redis.Redis.from_url(server.url) as client:
                names = [name.decode() for name in client.keys("samovar:*")]
            assert not [name for name in names if name.startswith("samovar:block")]
            assert rows(tmp_path / "a") == {}
