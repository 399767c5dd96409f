"""Who comes in, and what the asking costs: users are read again for keys that could be new, once for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gateway.auth.registry import UserRegistry
from gateway.auth.users import Users
from gateway.transport.authentication import Authentication

UNKNOWN = "smv_" + "x" * 43


class Counted(Users):
    """A users' file that knows how often it was looked into."""

    looked = 0

    async def changed(self) -> bool:
        """Look, a little later: others come meanwhile."""
        self.looked += 1
        await asyncio.sleep(0)
        return await super().changed()


@pytest.fixture
async def users(tmp_path: Path) -> AsyncIterator[Counted]:
    file = Counted(tmp_path)
    await file.add("anna")
    yield file
    file.close()


@pytest.fixture
async def client(users: Counted) -> AsyncIterator[httpx.AsyncClient]:
    async def name(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.principal.tenant)

    registry = UserRegistry(users, concurrency=2, messages=1200)
    await registry.refresh()
    users.looked = 0
    app: Any = Authentication(
        Starlette(routes=[Route("/v1/who", name)]), registry=registry, per_user=8, per_address=256
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def ask(client: httpx.AsyncClient, key: str) -> int:
    """The status that a request with this key gets."""
    return (await client.get("/v1/who", headers={"Authorization": f"Bearer {key}"})).status_code


async def test_many_unknown_keys_at_once_have_the_users_read_once_or_twice(
    users: Counted, client: httpx.AsyncClient
) -> None:
    assert await asyncio.gather(*(ask(client, UNKNOWN) for _ in range(100))) == [401] * 100
    assert 1 <= users.looked <= 2


async def test_what_can_be_no_key_has_nothing_read(users: Counted, client: httpx.AsyncClient) -> None:
    assert await ask(client, "sk-another-service") == 401
    assert (await client.get("/v1/who")).status_code == 401
    assert users.looked == 0


async def test_a_new_key_is_good_at_once_among_unknown_ones(client: httpx.AsyncClient, tmp_path: Path) -> None:
    wrong = [asyncio.ensure_future(ask(client, UNKNOWN)) for _ in range(20)]
    await asyncio.sleep(0)  # the first of them is being looked for
    other = Users(tmp_path)  # as `samovar keys add` does it, in a process of its own
    key = await other.add("ben")
    other.close()
    assert await ask(client, key) == 200
    assert await asyncio.gather(*wrong) == [401] * 20
