"""Users that several gateways share through a Redis: added, revoked and lost in any order, also during outages."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from cache import KeyMismatchError, KeyRing, Ledger
from gateway.auth.principal import Limits
from gateway.auth.usage import Usage
from gateway.auth.user import Key, digest, find_user
from gateway.auth.users import UserError, Users, exist
from gateway.cli import main
from tests.support.redis_server import RedisServer
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway

SECRET = KeyRing.new()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with RedisServer(tmp_path) as running:
        yield running


@asynccontextmanager
async def house(folder: Path, server: RedisServer, secret: KeyRing = SECRET) -> AsyncIterator[Users]:
    """The users of one gateway among those that share `server`."""
    ledger = Ledger(server.url, secret)
    users = Users(folder, ledger=ledger)
    yield users
    users.close()
    ledger.close()


async def known(users: Users) -> dict[str, bool]:
    """Who has a key, and whether it is good."""
    await users.share()
    return {user.name: user.revoked_at is None for user in await users.all()}


async def test_use_is_counted_over_all_gateways(tmp_path: Path, server: RedisServer) -> None:
    async with house(tmp_path / "a", server) as here, house(tmp_path / "b", server) as there:
        await here.add("anna")
        await there.share()
        [anna] = await here.all()
        for users, tokens in ((here, 10), (there, 200), (there, 3000)):
            await users.usage.add({anna.tenant: Usage(1, tokens)})
        for users in (here, there):
            [user] = await users.all_with_total_usage()
            assert (user.requests, user.tokens, user.requests_today, user.tokens_today) == (3, 3210, 3, 3210)
            days = (await users.usage.days(anna.tenant))[anna.tenant]
            assert [(used.requests, used.tokens) for used in days.values()] == [(3, 3210)]
        assert await here.usage.tokens_elsewhere() == {anna.tenant: 3200}
        server.stop()
        assert await here.usage.tokens_elsewhere() == {anna.tenant: 3200}
        await here.usage.add({anna.tenant: Usage(1, 10_000)})
        [user] = await here.all_with_total_usage()
        assert user.tokens == 10_010  # only this gateway's usage is known
        server.start()
        for _ in range(100):
            await here.usage.add({})
            [user] = await there.all_with_total_usage()
            if user.tokens == 13_210:
                break
            await asyncio.sleep(0.1)
        assert user.tokens == 13_210


async def test_a_gateway_whose_clock_is_years_ahead_hides_no_use_of_today(tmp_path: Path, server: RedisServer) -> None:
    ledger = Ledger(server.url, SECRET)
    ahead = Users(tmp_path / "a", ledger=ledger, clock=lambda: time.time() + 3650 * 86_400)
    async with house(tmp_path / "b", server) as right:
        await ahead.add("anna")
        await right.share()
        [anna] = await right.all()
        await ahead.usage.add({anna.tenant: Usage(1, 10)})
        await right.usage.add({anna.tenant: Usage(1, 200)})
        [user] = await right.all_with_total_usage()
        assert (user.tokens, user.tokens_today) == (210, 200)
    ahead.close()
    ledger.close()


def raw(server: RedisServer) -> Any:
    """The Redis, as whoever reaches it finds it."""
    return redis.Redis.from_url(server.url)


async def test_a_key_made_at_one_gateway_is_good_at_another_with_all_its_limits(
    tmp_path: Path, server: RedisServer
) -> None:
    async with house(tmp_path / "a", server) as here, house(tmp_path / "b", server) as there:
        limits = Limits(concurrency=3, tokens_per_minute=600, weight=0.5)
        await here.add("王小明", admin=True, expires_at=4_000_000_000, limits=limits)
        assert await there.share()
        assert [user.key for user in await there.all()] == [user.key for user in await here.all()]
        assert [user.limits for user in await there.all()] == [limits]
        assert not await there.share()
        with pytest.raises(UserError, match="revoke it first"):
            await there.add("王小明")
        await there.limit("王小明", {"tokens_per_day": 1000, "weight": 2.0})
        await here.share()
        assert [user.limits for user in await here.all()] == [Limits(3, 600, 2.0, 1000)]
        await there.revoke("王小明")
        assert await known(here) == {"王小明": False}
        await there.add("王小明")
        assert await known(here) == {"王小明": True}
        assert await exist(tmp_path / "c", Ledger(server.url, SECRET))


async def test_an_outage_delays_and_loses_nothing(tmp_path: Path, server: RedisServer) -> None:
    async with house(tmp_path / "a", server) as here, house(tmp_path / "b", server) as there:
        await here.add("anna")
        await here.add("bert")
        assert await known(there) == {"anna": True, "bert": True}
        server.stop()
        await here.add("carl")
        await there.revoke("anna")
        await there.add("dora")
        assert [users.unpublished for users in (here, there)] == [True, True]
        server.start()  # with an empty database
        everybody = {"anna": False, "bert": True, "carl": True, "dora": True}
        for _ in range(200):
            found = [await known(users) for users in (here, there)]
            if found == [everybody] * 2:
                break
            await asyncio.sleep(0.1)
        assert found == [everybody] * 2
        assert [users.unpublished for users in (here, there)] == [False, False]


async def test_records_in_redis_reveal_nothing_and_forged_or_old_records_change_nothing(
    tmp_path: Path, server: RedisServer
) -> None:
    async with house(tmp_path / "a", server) as here, house(tmp_path / "b", server) as there:
        key = await here.add("anna")
        [user] = await here.all()
        before = raw(server).hgetall("samovar:users")
        for secret in (b"anna", key.encode(), user.tenant.encode(), user.digest):
            assert not any(secret in field + value for field, value in before.items())
        assert await known(there) == {"anna": True}
        await here.revoke("anna")
        assert await known(there) == {"anna": False}
        raw(server).hset("samovar:users", mapping={**before, b"forged": before[max(before, key=len)], b"bad": b"\x01"})
        raw(server).hincrby("samovar:users", "revision", 7)
        assert await known(there) == await known(here) == {"anna": False}
        async with house(tmp_path / "c", server) as third:  # a gateway that has never seen the user
            assert await known(third) == {"anna": False}
        raw(server).delete("samovar:users")
        assert await known(here) == {"anna": False}
        async with house(tmp_path / "d", server) as fourth:
            assert await known(fourth) == {"anna": False}


async def test_a_gateway_with_another_cache_key_shares_no_users_and_reports_it(
    tmp_path: Path, server: RedisServer
) -> None:
    stranger = KeyRing.new()
    async with house(tmp_path / "a", server) as here, house(tmp_path / "b", server, stranger) as there:
        await here.add("anna")
        assert await known(there) == {}
    ours, theirs = Ledger(server.url, SECRET), Ledger(server.url, stranger)
    await ours.check_key()
    with pytest.raises(KeyMismatchError):
        await theirs.check_key()
    ours.close()
    theirs.close()


async def test_users_survive_a_rotation_of_the_cache_key(tmp_path: Path, server: RedisServer) -> None:
    async with house(tmp_path / "a", server) as here:
        await here.add("anna")
    newer = KeyRing.parse(KeyRing.new().text + SECRET.text)
    async with house(tmp_path / "a", server, newer) as here, house(tmp_path / "b", server, newer) as there:
        assert await known(there) == {"anna": True}
        await here.revoke("anna")
        assert await known(there) == {"anna": False}
        assert raw(server).hlen("samovar:users") == 2  # one record, and the revision


MADE = {"a": 1, "b": 1, "c": 2}
"""When the keys of three tenants were made, all for one name: two out of each other's sight."""
HEARD = st.builds(
    lambda tenant, revoked, rotated: Key(
        "anna", tenant, bytes([rotated]), False, 1.0, None, None, MADE[tenant], None, revoked, rotated
    ),
    st.sampled_from([*MADE]),
    st.none() | st.integers(1, 3),
    st.integers(0, 2),
)


@given(st.lists(HEARD, min_size=1, max_size=6), st.randoms())
def test_gateways_reach_the_same_state_in_any_order_of_changes(keys: list[Key], random: Any) -> None:
    orders = [keys, random.sample(keys, len(keys)), keys[::-1] * 2]
    [found] = {functools.reduce(Key.merged, order) for order in orders}
    assert found.age == max(key.age for key in keys)
    moments = [key.revoked_at for key in keys if key.tenant == found.tenant and key.revoked_at is not None]
    assert found.revoked_at == min(moments, default=None)
    assert found.rotated_at == max(key.rotated_at for key in keys if key.tenant == found.tenant)


async def test_a_replaced_key_is_replaced_at_all_gateways(tmp_path: Path, server: RedisServer) -> None:
    async with house(tmp_path / "a", server) as here, house(tmp_path / "b", server) as there:
        old = await here.add("anna")
        await there.share()
        new = await there.rotate("anna", grace=3600)
        await here.share()
        for users in (here, there):
            [user] = await users.all()
            assert find_user([user], old) == find_user([user], new) == user
            assert user.credentials(time.time()) == [digest(new), digest(old)]
            assert user.credentials(time.time() + 3601) == [digest(new)]


@pytest.fixture
def cache_key(tmp_path: Path) -> Path:
    """As an administrator carries it from one gateway to the other."""
    path = tmp_path / "cache.key"
    path.write_text(SECRET.text)
    return path


@pytest.mark.slow
async def test_a_key_opens_and_closes_both_gateways_within_two_seconds(
    tmp_path: Path, tiny_model: Path, server: RedisServer, cache_key: Path
) -> None:
    settings = {"model": tiny_model, "context": 512, "cache": server.url, "cache_key": cache_key}

    def keys(state: str, *arguments: str) -> str:
        """Run `samovar keys` with the Redis of the gateways, as an operator of one of them."""
        flags = [f"--state-dir={tmp_path / state}", f"--cache={server.url}"]
        environment = {**CHILD_ENVIRONMENT, "SAMOVAR_CACHE_KEY": str(cache_key)}
        return subprocess.check_output([*SAMOVAR, "keys", *arguments, *flags], text=True, env=environment).strip()

    def alone(state: str, *arguments: str) -> None:
        """Run `samovar keys` without the Redis: the gateway itself has to publish the change."""
        command = [*SAMOVAR, "keys", *arguments, f"--state-dir={tmp_path / state}"]
        subprocess.check_output(command, text=True, env=CHILD_ENVIRONMENT)

    with Gateway(tmp_path / "a", **settings) as one, Gateway(tmp_path / "b", **settings) as two:
        url = two.url.replace("http", "ws", 1) + "/v1/responses"
        async with connect(url) as anonymous:
            key = keys("a", "add", "anna")
            with pytest.raises(ConnectionClosed):  # the first key closes the other gateway to those without
                async with asyncio.timeout(10):
                    await anonymous.recv()
        for gateway in (one, two):
            assert gateway.get("/v1/models", Authorization=f"Bearer {key}").status_code == 200
            assert gateway.get("/v1/models").status_code == 401
        assert json.loads(keys("b", "list", "--json"))[0]["name"] == "anna"
        async with connect(url, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
            alone("a", "revoke", "anna")
            with pytest.raises(ConnectionClosed) as ended:
                async with asyncio.timeout(10):
                    await socket.recv()
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == 1008
        assert two.get("/v1/models", Authorization=f"Bearer {key}").status_code == 401


def test_the_command_reports_that_redis_is_unavailable(
    tmp_path: Path, server: RedisServer, cache_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop()
    flags = [f"--state-dir={tmp_path / 'a'}", f"--cache={server.url}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMOVAR_CACHE_KEY", str(cache_key))
        assert main(["keys", "add", "anna", *flags]) == 0
        said = capsys.readouterr()
        assert said.out.startswith("smv_")
        assert f"{server.url} does not answer" in said.err
        server.start()
        assert main(["keys", "list", *flags]) == 0
        said = capsys.readouterr()
        assert "anna" in said.out
        assert said.err == ""
        cache_key.write_text(KeyRing.new().text)
        raw(server).set("samovar:key", SECRET.fingerprints[0])
        assert main(["keys", "list", *flags]) == 1
        assert "cache_key: " in capsys.readouterr().err
