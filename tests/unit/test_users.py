"""Users and keys: stored as digests, shared by processes, read again by a running gateway."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.auth.principal import ANONYMOUS, Limits, Principal
from gateway.auth.registry import ActiveConnection, UserRegistry
from gateway.auth.usage import Usage
from gateway.auth.user import digest, find_user
from gateway.auth.users import UserError, Users, exist
from gateway.cli import main
from gateway.errors import InvalidApiKeyError

KEY = re.compile(r"smv_[A-Za-z0-9_-]{43}")


@pytest.fixture
async def users(tmp_path: Path) -> AsyncIterator[Users]:
    file = Users(tmp_path)
    yield file
    file.close()


@pytest.fixture
async def registry(users: Users) -> UserRegistry:
    return UserRegistry(users, concurrency=2, messages=1200)


def contents(folder: Path) -> list[bytes]:
    """Every file of a folder."""
    return [path.read_bytes() for path in folder.iterdir()]


async def nobody() -> None:
    """Do not close the connection."""


async def test_a_key_is_shown_once_and_only_its_digest_is_stored(users: Users, tmp_path: Path) -> None:
    key = await users.add("anna")
    assert KEY.fullmatch(key)
    [user] = await users.all()
    assert find_user([user], key) == user
    assert find_user([user], key[:-1]) is None
    assert not any(key.encode() in content for content in contents(tmp_path))


async def test_a_key_is_compared_with_everybodys_each_in_constant_time(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Digest(bytes):
        """One that no ordinary comparison may touch, as that ends at the first byte that differs."""

        def __eq__(self, other: object) -> bool:
            raise AssertionError("it was compared by ==")

        __hash__ = None  # type: ignore[assignment]  # nor may it be looked up in a table

    keys = [await users.add(name) for name in ("anna", "bert", "carl")]
    everybody = [msgspec.structs.replace(user, digest=Digest(user.digest)) for user in await users.all()]
    compared, compare = list[bytes](), hmac.compare_digest

    def compare_and_note(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare_and_note)
    for key, whose in ((keys[0], 0), (keys[2], 2), ("smv_wrong", None)):
        compared.clear()
        assert find_user(everybody, key) is (None if whose is None else everybody[whose])
        assert [bytes(one) for one in compared] == [bytes(user.digest) for user in everybody]


async def test_a_new_key_for_an_old_name_is_a_new_tenant(users: Users) -> None:
    await users.add("anna")
    [before] = await users.all()
    with pytest.raises(UserError, match="revoke it first"):
        await users.add("anna")
    await users.revoke("anna")
    await users.add("anna")
    [after] = await users.all()
    assert before.tenant != after.tenant
    assert after.is_valid(time.time())


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a\n", "../a"])
async def test_a_name_that_is_none_is_refused(users: Users, name: str) -> None:
    with pytest.raises(UserError):
        await users.add(name)


async def test_a_chinese_name_is_one(users: Users) -> None:
    await users.add("王小明")
    assert [user.name for user in await users.all()] == ["王小明"]


async def test_without_keys_all_callers_are_accepted_and_share_one_tenant(registry: UserRegistry) -> None:
    await registry.refresh()
    assert registry.identify("anything", "connection 1") == Principal(ANONYMOUS, "connection 1")


async def test_with_the_first_key_every_caller_needs_one(users: Users, registry: UserRegistry) -> None:
    key = await users.add("anna", admin=True, limits=Limits(tokens_per_minute=600))
    await registry.refresh()
    principal = registry.identify(key, "connection 1")
    assert (principal.limits, principal.admin) == (Limits(2, 600), True)
    assert principal.tenant == principal.user != ANONYMOUS
    for wrong in (None, "", "smv_", key + "x", key.swapcase()):
        with pytest.raises(InvalidApiKeyError):
            registry.identify(wrong, "connection 1")


async def test_a_key_ends_when_it_expires(users: Users) -> None:
    now = 1000.0
    key = await users.add("anna", expires_at=1010)
    registry = UserRegistry(users, concurrency=2, messages=1200, clock=lambda: now)
    await registry.refresh()
    registry.identify(key, "")
    now = 1010.0
    with pytest.raises(InvalidApiKeyError, match="expired"):
        registry.identify(key, "")


async def test_a_key_revoked_by_another_process_closes_its_connections(
    users: Users, registry: UserRegistry, tmp_path: Path
) -> None:
    left: list[str] = []

    async def leave() -> None:
        left.append("anna")

    keys = [await users.add(name) for name in ("anna", "bert")]
    await registry.refresh()
    guests = [ActiveConnection(registry.identify(key, ""), "", leave if key == keys[0] else nobody) for key in keys]
    for guest in guests:
        registry.enter(guest)
    other = Users(tmp_path)
    await other.revoke("anna")
    other.close()
    await registry.refresh()
    await asyncio.sleep(0)
    assert left == ["anna"]
    with pytest.raises(InvalidApiKeyError, match="revoked"):
        registry.identify(keys[0], "")
    registry.identify(keys[1], "")


async def test_with_the_last_key_revoked_the_gateway_stays_closed(users: Users, registry: UserRegistry) -> None:
    await users.add("anna")
    await users.revoke("anna")
    await registry.refresh()
    with pytest.raises(InvalidApiKeyError):
        registry.identify(None, "")


async def test_what_a_user_had_is_written_down(users: Users, registry: UserRegistry) -> None:
    key = await users.add("anna")
    await registry.refresh()
    principal = registry.identify(key, "")
    for tokens in (10, 20):
        registry.record_usage(principal, tokens)
        await registry.flush()
    registry.record_usage(Principal(ANONYMOUS, "x"), 5)
    await registry.flush()
    [user] = await users.all()
    assert (user.requests, user.tokens, user.requests_today, user.tokens_today) == (2, 30, 2, 30)
    assert user.last_used is not None


async def test_a_new_day_begins_at_nothing(tmp_path: Path) -> None:
    now = time.time()
    users = Users(tmp_path, clock=lambda: now)
    await users.add("anna")
    [user] = await users.all()
    await users.usage.add({user.tenant: Usage(1, 10)})
    now += 86_400
    await users.usage.add({user.tenant: Usage(2, 30)})
    [user] = await users.all()
    assert (user.requests, user.tokens, user.requests_today, user.tokens_today) == (3, 40, 2, 30)
    users.close()


def keys(capsys: pytest.CaptureFixture[str], state: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `samovar keys`."""
    try:
        code = main(["keys", *arguments, f"--state-dir={state}"])
    except SystemExit as left:
        code = int(left.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_commands_add_list_and_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not asyncio.run(exist(tmp_path))
    code, key, _ = keys(
        capsys, tmp_path, "add", "anna", "--admin", "--expires", "90 days", "--tokens-per-minute", "6000"
    )
    assert code == 0
    assert KEY.fullmatch(key.removesuffix("\n"))
    assert asyncio.run(exist(tmp_path))
    table = keys(capsys, tmp_path, "list")[1]
    assert "anna" in table
    assert "valid, admin" in table
    assert "6,000" in table
    assert key.strip() not in table
    assert keys(capsys, tmp_path, "limit", "anna", "--tokens-per-day", "50000", "--weight", "0.5")[0] == 0
    assert "50,000" in keys(capsys, tmp_path, "list")[1]
    [user] = json.loads(keys(capsys, tmp_path, "list", "--json")[1])
    assert (user["tokens_per_day"], user["tokens_per_minute"], user["weight"]) == (50_000, 6000, 0.5)
    assert keys(capsys, tmp_path, "revoke", "anna")[0] == 0
    assert '"state": "revoked"' in keys(capsys, tmp_path, "list", "--json")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["revoke", "anna"], 1, "no user anna has a valid key"),
        (["add", "a b"], 1, "a name must be"),
        (["add"], 2, "NAME"),
        (["add", "a", "--expires", "yesterday"], 2, "yesterday"),
        (["add", "a", "--expires", "2001-01-01"], 2, "past"),
        (["add", "a", "--expires", "3 months"], 2, "3 months"),
        (["add", "a", "--expires", "90"], 2, "neither a duration"),
        (["add", "a", "--expires", "9999999999999 weeks"], 2, "neither a duration"),
        (["add", "a", "--tokens-per-minute", "0"], 2, "not a positive integer"),
        (["add", "a", "--tokens-per-day", "none"], 2, "not a positive integer"),
        (["limit", "a", "--tokens-per-day", "no"], 2, "`none` removes the limit"),
        (["add", "a", "--weight", "nan"], 2, "between"),
        (["limit", "a"], 1, "--tokens-per-day 100000"),
        (["limit", "a", "--concurrency", "2"], 1, "no user a has a valid key"),
        (["mint"], 2, "mint"),
    ],
)
def test_a_users_mistake_gets_a_message_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    found, said, error = keys(capsys, tmp_path, *arguments)
    assert (found, said) == (code, "")
    assert error.startswith("samovar: ")
    assert error.count("\n") == 1
    assert text in error


def test_a_users_file_that_is_not_a_database_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    (tmp_path / "users.db").write_bytes(b"not a database" * 100)
    code, _, error = keys(capsys, tmp_path, "list")
    assert code == 1
    assert "users.db can't be opened" in error


async def test_users_of_an_earlier_version_are_read_and_their_keys_replaced(tmp_path: Path) -> None:
    users = Users(tmp_path)
    old = await users.add("anna")
    users.close()
    with closing(sqlite3.connect(tmp_path / "users.db")) as connection:
        for name in ("rotated_at", "old_digest", "old_until", "tokens_per_day", "limits_at"):
            connection.execute(f"ALTER TABLE users DROP COLUMN {name}")
        connection.execute("DROP TABLE usage_days")
    users = Users(tmp_path)
    assert find_user(await users.all(), old) is not None
    new = await users.rotate("anna")
    [user] = await users.all()
    assert user.credentials(time.time()) == [digest(new)]
    await users.limit("anna", {"tokens_per_day": 5})
    await users.usage.add({user.tenant: Usage(1, 2)})
    assert [(user.tokens_per_day, user.tokens) for user in await users.all()] == [(5, 2)]
    await users.revoke("anna")
    with pytest.raises(UserError, match="no user anna has a valid key"):
        await users.rotate("anna")
    users.close()


async def test_an_expired_key_is_replaced_only_with_a_new_expiry(tmp_path: Path) -> None:
    users = Users(tmp_path)
    await users.add("anna", expires_at=int(time.time()) - 1)
    with pytest.raises(UserError, match="--expires 90d"):
        await users.rotate("anna")
    new = await users.rotate("anna", expires_at=int(time.time()) + 60)
    [user] = await users.all()
    assert user.credentials(time.time()) == [digest(new)]
    users.close()
