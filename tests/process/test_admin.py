"""The admin API and the account of a user: for whom they are, what they change, and what they log."""

from __future__ import annotations

import asyncio
import csv
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.auth.users import Users
from gateway.transport.admin import ROOT
from gateway.transport.openapi import document
from tests.support.running import Gateway


class Office:
    """A gateway with an admin and a user."""

    def __init__(self, gateway: Gateway, keys: dict[str, str]) -> None:
        """`keys` are those of `boss` and `anna`."""
        self.gateway = gateway
        self.keys = keys

    def ask(self, method: str, path: str, user: str | None = "boss", **options: Any) -> httpx.Response:
        """One request of a user, or without a key."""
        headers = {} if user is None else {"Authorization": f"Bearer {self.keys[user]}"}
        return httpx.request(method, self.gateway.url + path, headers=headers, timeout=60, **options)

    def add(self, name: str, **fields: Any) -> dict[str, Any]:
        """A new user, whose key is remembered."""
        made = self.ask("POST", f"{ROOT}/users", json={"name": name, **fields})
        assert made.status_code == 200, made.text
        self.keys[name] = made.json()["key"]
        return dict(made.json())

    def say(self, user: str) -> dict[str, Any]:
        """A short answer."""
        answer = self.ask("POST", "/v1/responses", user, json={"input": "Hello", "max_output_tokens": 2})
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["usage"])


async def make_keys(state: Path) -> dict[str, str]:
    """Keys of an admin and a user."""
    users = Users(state)
    made = {"boss": await users.add("boss", admin=True), "anna": await users.add("anna")}
    users.close()
    return made


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Office]:
    state = tmp_path_factory.mktemp("admin") / "state"
    keys = asyncio.run(make_keys(state))
    with Gateway(state, model=tiny_model, context=512) as gateway:
        yield Office(gateway, keys)


def operations() -> Iterator[tuple[str, str]]:
    """All operations of the admin API."""
    for path, item in document()["paths"].items():
        if path.startswith(ROOT):
            for method in item:
                yield method.upper(), path.replace("{id}", "0" * 8)


def test_every_route_needs_an_admin_key_in_a_header(office: Office) -> None:
    password = httpx.BasicAuth("boss", office.keys["boss"])
    for method, path in operations():
        assert office.ask(method, path, None).status_code == 401, path
        refused = office.ask(method, path, "anna")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "invalid_api_key"), path
        assert "keys add NAME --admin" in refused.json()["error"]["message"]
        # Browsers send passwords and cookies by themselves, also for a request that another site's page has made.
        assert office.ask(method, path, None, auth=password, cookies={"key": office.keys["boss"]}).status_code == 401
        other_spelling = path.removeprefix("/v1").replace("/", "//")
        assert office.ask(method, other_spelling, "anna").status_code == 403, other_spelling


def soon(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    for _ in range(300):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come true")


def test_without_keys_nobody_is_an_admin(tiny_server: Gateway) -> None:
    refused = tiny_server.get(f"{ROOT}/users")
    assert refused.status_code == 403
    assert "this gateway has no API keys" in refused.json()["error"]["message"]
    assert tiny_server.get("/v1/me").status_code == 403


def test_a_user_is_added_limited_rotated_revoked_and_deleted(office: Office) -> None:
    made = office.add("carl", tokens_per_day=1000, weight=0.5, expires_at=int(time.time()) + 3600)
    path = f"{ROOT}/users/{made['id']}"
    assert (made["tokens_per_day"], made["tokens_left_today"], made["state"]) == (1000, 1000, "valid")
    used = office.say("carl")["total_tokens"]
    assert office.ask("GET", "/v1/me", "carl").json()["tokens_left_today"] == 1000 - used
    limited = office.ask("POST", path, json={"tokens_per_day": 1, "concurrency": 3}).json()
    assert (limited["tokens_per_day"], limited["concurrency"], limited["weight"]) == (1, 3, 0.5)
    assert office.ask("POST", "/v1/responses", "carl", json={"input": "Hello"}).status_code == 429
    assert office.ask("POST", path, json={"tokens_per_day": None}).json()["tokens_left_today"] is None
    office.say("carl")

    old = office.keys["carl"]
    office.keys["carl"] = office.ask("POST", f"{path}/rotate", json={}).json()["key"]
    office.keys["old"] = old
    assert office.ask("GET", "/v1/me", "old").status_code == 401
    soon(lambda: office.ask("GET", "/v1/me", "carl").json()["requests"] >= 1)  # usage is stored each second

    assert office.ask("POST", f"{path}/revoke").json()["state"] == "revoked"
    assert office.ask("GET", "/v1/me", "carl").status_code == 401
    assert office.ask("POST", f"{path}/rotate", json={}).status_code == 400
    assert office.ask("DELETE", path).json()["deleted"] is True
    assert office.ask("DELETE", path).status_code == 404
    assert "carl" not in [user["name"] for user in office.ask("GET", f"{ROOT}/users").json()["data"]]

    actions = [json.loads(line) for line in office.gateway.log().splitlines() if made["id"] in line]
    assert [line["action"] for line in actions if line["event"] == "admin"] == [
        "user added",
        "limits changed",
        "limits changed",
        "key rotated",
        "key revoked",
        "user deleted",
    ]
    [boss] = [user for user in office.ask("GET", f"{ROOT}/users").json()["data"] if user["name"] == "boss"]
    assert {line["by"] for line in actions if line["event"] == "admin"} == {boss["id"]}
    for secret in ("carl", "smv_"):
        assert secret not in office.gateway.log()


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("users", {"name": "a b"}, 400, "a name must be"),
        ("users", {"name": "anna"}, 400, "already exists"),
        ("users", {"name": "x", "expires_at": 5}, 400, "in the past"),
        ("users", {"name": "x", "tokens_per_day": 0}, 400, "tokens_per_day"),
        ("users", {"name": "x", "tokens_per_dya": 5}, 400, "tokens_per_dya"),
        ("users/ffffffff", {"tokens_per_day": 5}, 404, "there is no user ffffffff"),
        ("users/ffffffff/rotate", {}, 404, "there is no user ffffffff"),
    ],
)
def test_a_mistake_is_refused_by_the_name_of_its_field(
    office: Office, path: str, body: dict[str, Any], status: int, text: str
) -> None:
    refused = office.ask("POST", f"{ROOT}/{path}", json=body)
    assert refused.status_code == status
    assert text in refused.json()["error"]["message"]


def test_an_admin_cannot_lock_the_own_key_out(office: Office) -> None:
    own = office.ask("GET", "/v1/me").json()["id"]
    for method, path in (("POST", f"{ROOT}/users/{own}/revoke"), ("DELETE", f"{ROOT}/users/{own}")):
        refused = office.ask(method, path)
        assert refused.status_code == 400
        assert "your own key" in refused.json()["error"]["message"]
    assert office.ask("POST", f"{ROOT}/users/{own}", json={}).status_code == 400  # names no limit


def test_an_admin_replaces_the_own_key_and_receives_the_new_one(office: Office) -> None:
    own = office.ask("GET", "/v1/me").json()["id"]
    made = office.ask("POST", f"{ROOT}/users/{own}/rotate", json={})
    assert made.status_code == 200
    office.keys["boss"] = made.json()["key"]
    assert office.ask("GET", f"{ROOT}/users").status_code == 200


def test_usage_is_reported_by_user_and_day_and_to_each_user_only_the_own(office: Office) -> None:
    office.add("+dora")
    used = [office.say(user)["total_tokens"] for user in ("anna", "+dora")]
    for _ in range(100):  # the counters are stored every second
        rows = list(csv.DictReader(office.ask("GET", f"{ROOT}/usage.csv").text.splitlines()))
        if {"anna", "'+dora"} <= {row["name"] for row in rows}:
            break
        time.sleep(0.1)
    assert [row["tokens"] for row in rows if row["name"] == "'+dora"] == [str(used[1])]
    report = office.ask("GET", f"{ROOT}/usage?days=7").json()["data"]
    [anna] = [user for user in report if user["name"] == "anna"]
    assert anna["periods"]["7_days"]["tokens"] == anna["tokens"] == used[0]
    assert [len(anna["days"]), anna["days"][-1]["tokens"]] == [7, used[0]]
    own = office.ask("GET", "/v1/me/usage", "anna").json()["data"]
    assert [len(own), own[-1]["tokens"], sum(day["requests"] for day in own)] == [30, used[0], 1]
    me = office.ask("GET", "/v1/me", "anna").json()
    assert (me["name"], me["admin"], me["tokens_today"], me["tokens_left_today"]) == ("anna", False, used[0], None)
    assert 0 < me["storage"]["bytes"] < me["storage"]["limit"]
    assert "+dora" not in json.dumps([me, own])


def test_the_state_of_the_engines_is_shown(office: Office) -> None:
    office.say("anna")
    [model] = office.ask("GET", f"{ROOT}/engines").json()["data"]
    assert model["context_length"] == 512
    assert any(engine["loaded"] for engine in model["engines"])
