"""Conversations at the gateway, through the official client: listed, continued, branched, changed and deleted."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import pytest
from openai import OpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.auth.users import Users
from gateway.cli import main
from tests.support.running import Gateway

ANSWER: dict[str, Any] = {"extra_body": {"logit_bias": {"65": 100}}, "temperature": 0, "max_output_tokens": 3}
"""The tiny model says AAA."""


async def make_keys(state: Path, *names: str) -> list[str]:
    """Keys of new users."""
    users = Users(state)
    made = [await users.add(name) for name in names]
    users.close()
    return made


class Office:
    """A gateway with two users."""

    def __init__(self, gateway: Gateway, keys: list[str]) -> None:
        """Serve both at `gateway`."""
        self.gateway = gateway
        self.keys = keys
        self._clients: dict[tuple[str, int], OpenAI] = {}

    def __enter__(self) -> Self:
        """Start the gateway."""
        self.gateway.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all clients and stop the gateway."""
        for client in self._clients.values():
            client.close()
        self.gateway.stop()

    def client(self, user: int = 0) -> OpenAI:
        """The official client of one of the users."""
        url = self.gateway.url
        if (url, user) not in self._clients:
            self._clients[url, user] = OpenAI(base_url=f"{url}/v1", api_key=self.keys[user], max_retries=0)
        return self._clients[url, user]

    def http(self, method: str, path: str, user: int = 0, **options: Any) -> httpx.Response:
        """One request of a user."""
        headers = {"Authorization": f"Bearer {self.keys[user]}"}
        return httpx.request(method, self.gateway.url + path, headers=headers, timeout=60, **options)

    def socket(self, user: int = 0) -> connect:
        """A WebSocket of a user."""
        return connect(self.gateway.address, additional_headers={"Authorization": f"Bearer {self.keys[user]}"})


def start(folder: Path, model: Path, **settings: Any) -> Office:
    """An office whose gateway does not run yet."""
    state = folder / "state"
    return Office(Gateway(state, model=model, context=512, **settings), asyncio.run(make_keys(state, "anna", "bert")))


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Office]:
    """One for all tests of this file that do not stop it."""
    started = start(tmp_path_factory.mktemp("office"), tiny_model)
    with started:
        yield started


def texts(items: Any) -> list[str]:
    """What is said in items of the official client."""
    return [item.content[0].text for item in items]


def say(client: OpenAI, conversation: Any, text: str) -> Any:
    """A response in a conversation."""
    return client.responses.create(input=text, conversation=conversation, **ANSWER)


def test_the_official_client_creates_changes_and_deletes_a_conversation(office: Office) -> None:
    client = office.client()
    made = client.conversations.create(metadata={"title": "Tea"})
    assert made.id.startswith("conv_")
    assert client.conversations.retrieve(made.id).metadata == {"title": "Tea"}
    changed = client.conversations.update(made.id, metadata={"title": "茶"})
    assert (changed.id, changed.metadata, changed.created_at) == (made.id, {"title": "茶"}, made.created_at)
    assert client.conversations.delete(made.id).deleted
    for request in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError, match=f"there is no conversation {made.id}"):
            request(made.id)


def test_responses_continue_the_head_and_are_appended(office: Office) -> None:
    client = office.client()
    conversation = client.conversations.create()
    first = say(client, conversation.id, "one")
    second = say(client, {"id": conversation.id}, "two")
    assert first.conversation.id == second.conversation.id == conversation.id
    assert second.previous_response_id == first.id
    items = client.conversations.items.list(conversation.id, order="asc")
    assert texts(items) == ["one", "AAA", "two", "AAA"]
    pages = list(client.conversations.items.list(conversation.id, limit=1))
    assert texts(pages) == ["AAA", "two", "AAA", "one"]  # the client follows the pages
    found = client.conversations.items.retrieve(pages[1].id or "", conversation_id=conversation.id)
    assert texts([found]) == ["two"]
    with pytest.raises(openai.BadRequestError, match="cannot be deleted one by one"):
        client.conversations.items.delete(pages[1].id or "", conversation_id=conversation.id)
    with pytest.raises(openai.NotFoundError, match="no item msg_1"):
        client.conversations.items.retrieve("msg_1", conversation_id=conversation.id)
    client.conversations.delete(conversation.id)
    for response in (first, second):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)


def test_a_conversation_branches_at_any_turn(office: Office) -> None:
    client = office.client()
    conversation = client.conversations.create().id
    first = say(client, conversation, "one")
    second = say(client, conversation, "two")
    third = say(client, {"id": conversation, "after": first.id}, "three")
    other = say(client, {"id": conversation, "after": None}, "other")
    assert (third.previous_response_id, other.previous_response_id) == (first.id, None)
    told = office.http("GET", f"/v1/conversations/{conversation}").json()
    parents = [(turn["id"], turn["previous_response_id"]) for turn in told["turns"]]
    assert parents == [(first.id, None), (second.id, first.id), (third.id, first.id), (other.id, None)]
    assert told["head"] == other.id
    assert texts(client.conversations.items.list(conversation, order="asc")) == ["other", "AAA"]
    back = office.http("POST", f"/v1/conversations/{conversation}", json={"head": second.id, "draft": "and"}).json()
    assert (back["head"], back["draft"]) == (second.id, "and")
    assert say(client, conversation, "four").previous_response_id == second.id
    asked = office.http("GET", f"/v1/conversations/{conversation}/items?order=asc&response={third.id}").json()
    assert [item["content"][0]["text"] for item in asked["data"]] == ["one", "AAA", "three", "AAA"]


def test_the_list_is_paged_by_the_last_change(office: Office) -> None:
    client = office.client(1)
    made = [client.conversations.create(metadata={"title": str(n)}).id for n in range(5)]
    client.conversations.update(made[1], metadata={"title": "changed"})
    order = [made[1], made[4], made[3], made[2], made[0]]
    found: list[str] = []
    after = ""
    while True:
        body = office.http("GET", f"/v1/conversations?limit=2{after}", 1).json()
        found += [one["id"] for one in body["data"]]
        if not body["has_more"]:
            break
        after = f"&after={body['last_id']}"
    assert found == order
    assert "turns" not in body["data"][0]
    ascending = office.http("GET", "/v1/conversations?order=asc", 1).json()["data"]
    assert [one["id"] for one in ascending] == order[::-1]
    assert office.http("GET", "/v1/conversations?after=conv_1", 1).status_code == 400


def test_items_can_be_brought_along_and_added(office: Office) -> None:
    client = office.client()
    before: Any = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    conversation = client.conversations.create(items=before, metadata={"title": "brought"})
    added = client.conversations.items.create(conversation.id, items=[{"role": "user", "content": "three"}])
    assert texts(added.data) == ["three"]
    say(client, conversation.id, "four")
    items = client.conversations.items.list(conversation.id, order="asc")
    assert texts(items) == ["one", "two", "three", "four", "AAA"]


def test_responses_of_before_become_turns(office: Office) -> None:
    client = office.client()
    first = client.responses.create(input="one", **ANSWER)
    second = client.responses.create(input="two", previous_response_id=first.id, **ANSWER)
    body = {"id": f"conv_{7:032x}", "responses": [first.id, f"resp_{0:032x}", second.id]}
    for _ in range(2):  # a client that lost the answer asks again
        made = office.http("POST", "/v1/conversations", json=body).json()
        assert [turn["id"] for turn in made["turns"]] == [first.id, second.id]
    items = client.conversations.items.list(made["id"], order="asc")
    assert texts(items) == ["one", "AAA", "two", "AAA"]
    assert client.conversations.delete(made["id"]).deleted
    again = office.http("POST", "/v1/conversations", json=body)
    assert again.status_code == 404, "nothing deleted returns"


def turn(number: int, previous: int | None, *said: str, **fields: Any) -> dict[str, Any]:
    """A turn that a client has stored itself: a question and its answer."""
    items = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
    before = None if previous is None else f"resp_{previous:032x}"
    return {"id": f"resp_{number:032x}", "previous_response_id": before, "items": items, **fields}


def spoken(turns: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What was said in each turn."""
    return {turn["id"]: [item["content"][0]["text"] for item in turn["items"]] for turn in turns}


def test_all_branches_that_a_client_has_stored_are_imported_once(office: Office) -> None:
    client = office.client()
    stored = client.responses.create(input="two", **ANSWER)
    number = int(stored.id.removeprefix("resp_"), 16)
    id_ = f"conv_{8:032x}"
    body = {"id": id_, "metadata": {"title": "Old"}, "created_at": 1_700_000_000}
    turns = [
        turn(11, None, "one", "first", key="a", created_at=1_700_000_001),
        turn(number, 11, "not", "used", created_at=1_700_000_002),
        turn(12, 11, "three", "third", created_at=1_700_000_003),
        turn(13, None, "four", "fourth", created_at=1_700_000_004),
    ]
    for count in (2, 4, 4):  # interrupted, and repeated
        assert office.http("POST", "/v1/conversations", json=body).status_code == 200
        made = office.http("POST", f"/v1/conversations/{id_}/turns", json={"turns": turns[:count]}).json()
    assert [(found["id"], found["previous_response_id"]) for found in made["turns"]] == [
        (one["id"], one["previous_response_id"]) for one in turns
    ]
    assert made["turns"][0]["key"] == "a"
    assert (made["created_at"], made["updated_at"], made["head"]) == (1_700_000_000, 1_700_000_004, turns[3]["id"])
    told = office.http("GET", f"/v1/conversations/{id_}/turns").json()
    assert told["conversation"] == made
    assert spoken(told["data"]) == {
        turns[0]["id"]: ["one", "first"],
        stored.id: ["two", "AAA"],
        turns[2]["id"]: ["three", "third"],
        turns[3]["id"]: ["four", "fourth"],
    }
    assert say(client, {"id": id_, "after": turns[2]["id"]}, "five").previous_response_id == turns[2]["id"]
    wrong = office.http("POST", f"/v1/conversations/{id_}/turns", json={"turns": [turn(14, 15, "x", "y")]})
    assert wrong.status_code == 400
    assert "neither a turn" in wrong.json()["error"]["message"]


def test_turns_are_listed_with_their_own_items_key_and_result(office: Office) -> None:
    client = office.client()
    conversation = client.conversations.create().id
    first = say(client, {"id": conversation, "after": None, "key": "k1"}, "one")
    second = say(client, {"id": conversation, "after": first.id, "key": "k2"}, "two")
    other = say(client, {"id": conversation, "after": first.id}, "three")
    told = office.http("GET", f"/v1/conversations/{conversation}/turns").json()["data"]
    assert spoken(told) == {first.id: ["one", "AAA"], second.id: ["two", "AAA"], other.id: ["three", "AAA"]}
    assert [found.get("key") for found in told] == ["k1", "k2", None]
    assert told[2]["status"] == "incomplete"
    assert told[2]["incomplete_details"]["reason"] == "max_output_tokens"
    assert told[2]["usage"]["output_tokens"] == 3
    client.responses.delete(second.id)
    told = office.http("GET", f"/v1/conversations/{conversation}/turns").json()["data"]
    assert [found["id"] for found in told] == [first.id, other.id]


async def test_a_running_turn_is_listed_with_its_question(office: Office) -> None:
    made = await asyncio.to_thread(office.client().conversations.create)
    async with office.socket() as socket:
        request = {"type": "response.create", "input": "hi", "conversation": made.id, "max_output_tokens": 400}
        await socket.send(json.dumps({**request, "logit_bias": {"65": 100}}))
        while (event := await receive(socket))["type"] != "response.output_text.delta":
            pass
        with office.gateway.suspended():
            answer = await asyncio.to_thread(office.http, "GET", f"/v1/conversations/{made.id}/turns")
        [found] = answer.json()["data"]
        assert found["status"] == "in_progress"
        assert found["items"][0]["content"][0]["text"] == "hi"
        await socket.send(json.dumps({"type": "response.cancel", "response_id": found["id"]}))
        while event["type"] != "response.incomplete":
            event = await receive(socket)


def test_another_users_conversation_is_reported_like_an_unknown_one(office: Office) -> None:
    mine = office.client().conversations.create().id
    say(office.client(), mine, "secret")
    unknown = f"conv_{1:032x}"
    requests: list[tuple[str, str, Any]] = [
        ("GET", "/v1/conversations/{}", None),
        ("POST", "/v1/conversations/{}", {"draft": "x"}),
        ("DELETE", "/v1/conversations/{}", None),
        ("GET", "/v1/conversations/{}/items", None),
        ("GET", "/v1/conversations/{}/turns", None),
        ("POST", "/v1/conversations/{}/turns", {"turns": [turn(16, None, "x", "y")]}),
        ("POST", "/v1/conversations/{}/items", {"items": [{"role": "user", "content": "x"}]}),
        ("GET", "/v1/conversations/{}/items/msg_1", None),
        ("POST", "/v1/responses", {"input": "x", "conversation": "{}"}),
    ]
    for method, path, body in requests:
        answers = []
        for id_ in (mine, unknown):
            filled = None if body is None else json.loads(json.dumps(body).replace("{}", id_))
            answer = office.http(method, path.format(id_), 1, **({} if filled is None else {"json": filled}))
            answers.append((answer.status_code, answer.text.replace(id_, "ID")))
        assert answers[0] == answers[1], path
        assert answers[0][0] == 404, path
    assert mine not in office.http("GET", "/v1/conversations?limit=100", 1).text
    assert office.http("GET", f"/v1/conversations/{mine}").status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"metadata": {"title": "x" * 513}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"draft": "x" * 32_769}, "draft"),
        ({"head": "resp_1"}, "the conversation has no turn resp_1"),
    ],
)
def test_titles_and_drafts_are_bounded(office: Office, body: dict[str, Any], words: str) -> None:
    id_ = office.client().conversations.create().id
    answer = office.http("POST", f"/v1/conversations/{id_}", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_users_own_texts_are_found(office: Office) -> None:
    client = office.client()
    conversation = client.conversations.create(metadata={"title": "x"}).id
    response = say(client, conversation, "我想喝茶")
    [result] = office.http("GET", "/v1/conversations/search", params={"q": "喝"}).json()["data"]
    assert result["conversation"]["id"] == conversation
    [match] = result["matches"]
    assert (match["before"], match["match"], match["after"]) == ("我想", "喝", "茶")
    assert match["response_id"] == response.id
    assert office.http("GET", "/v1/conversations/search", 1, params={"q": "喝"}).json()["data"] == []
    for wrong in ({}, {"q": ""}, {"q": " "}, {"q": "x" * 201}, {"q": "x", "after": "conv_1"}):
        assert office.http("GET", "/v1/conversations/search", params=wrong).status_code == 400


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"previous_response_id": "resp_1"}, "cannot be combined"),
        ({"store": False}, "must be stored"),
        ({"conversation": {"id": "ID", "after": "resp_1"}}, "has no turn resp_1"),
    ],
)
def test_contradictions_are_refused(office: Office, fields: dict[str, Any], words: str) -> None:
    id_ = office.client().conversations.create().id
    body = {"input": "x", "conversation": id_, **json.loads(json.dumps(fields).replace('"ID"', json.dumps(id_)))}
    answer = office.http("POST", "/v1/responses", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


async def receive(socket: ClientConnection) -> dict[str, Any]:
    """The next event."""
    async with asyncio.timeout(20):
        event: dict[str, Any] = json.loads(await socket.recv())
    return event


async def subscribe(socket: ClientConnection) -> None:
    """Ask for changes."""
    await socket.send(json.dumps({"type": "conversation.subscribe"}))
    assert (await receive(socket))["type"] == "conversation.subscribed"


async def test_every_subscribed_connection_of_the_user_receives_changes_and_no_other(office: Office) -> None:
    async with office.socket() as here, office.socket() as there, office.socket() as quiet, office.socket(1) as other:
        for socket in (here, there, other):
            await subscribe(socket)
        made = await asyncio.to_thread(office.client().conversations.create)
        for socket in (here, there):
            event = await receive(socket)
            assert (event["type"], event["conversation"]["id"]) == ("conversation.updated", made.id)
        request = {"type": "response.create", "input": "hi", "conversation": made.id, "max_output_tokens": 2}
        await quiet.send(json.dumps(request))
        kinds: list[str] = []
        while not kinds or (kinds[-1] != "response.completed" and kinds[-1] != "response.incomplete"):
            event = await receive(quiet)
            kinds.append(event["type"])
        assert all(kind.startswith("response.") for kind in kinds), "no subscription, no further events"
        changed = await receive(there)
        assert [turn["id"] for turn in changed["conversation"]["turns"]] == [event["response"]["id"]]
        await asyncio.to_thread(office.client().conversations.delete, made.id)
        while event["type"] != "conversation.deleted":
            event = await receive(there)
        assert event["conversation_id"] == made.id
        await asyncio.to_thread(office.client(1).conversations.create)
        event = await receive(other)
        assert event["conversation"]["id"] != made.id, "the other user has seen nothing of it"


async def test_a_ping_is_answered_while_an_answer_streams(office: Office) -> None:
    async with office.socket() as socket:
        request = {"type": "response.create", "input": "hi", "max_output_tokens": 200, "logit_bias": {"65": 100}}
        await socket.send(json.dumps(request))
        assert (await receive(socket))["type"] == "response.created"
        await socket.send(json.dumps({"type": "samovar.ping", "id": "7"}))
        kinds: list[str] = []
        while not kinds or kinds[-1] not in ("response.completed", "response.incomplete"):
            event = await receive(socket)
            kinds.append(event["type"])
            if event["type"] == "samovar.pong":
                assert event == {"type": "samovar.pong", "id": "7"}
        assert "samovar.pong" in kinds[:-1]


async def test_a_steered_response_and_its_successor_are_turns(office: Office) -> None:
    made = await asyncio.to_thread(office.client().conversations.create)
    async with office.socket() as socket:
        request = {"type": "response.create", "input": "hi", "conversation": made.id, "max_output_tokens": 200}
        await socket.send(json.dumps({**request, "logit_bias": {"65": 100}}))
        ids: list[str] = []
        ended = 0
        while ended < 2:
            event = await receive(socket)
            if event["type"] == "response.created":
                ids.append(event["response"]["id"])
                if len(ids) == 1:
                    steer = {"type": "response.steer", "previous_response_id": ids[0], "input": "shorter"}
                    await socket.send(json.dumps(steer))
            ended += event["type"] in ("response.completed", "response.incomplete")
    told = await asyncio.to_thread(office.http, "GET", f"/v1/conversations/{made.id}")
    turns = [(turn["id"], turn["previous_response_id"]) for turn in told.json()["turns"]]
    assert turns == [(ids[0], None), (ids[1], ids[0])]


def test_a_running_response_ends_when_its_conversation_is_deleted(office: Office) -> None:
    client = office.client()
    conversation = client.conversations.create().id
    running = client.responses.create(
        input="hi", conversation=conversation, background=True, extra_body={"logit_bias": {"65": 100}}
    )
    assert client.conversations.delete(conversation).deleted
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(running.id)


def test_conversations_survive_a_restart_and_deleted_ones_do_not(tmp_path: Path, tiny_model: Path) -> None:
    office = start(tmp_path, tiny_model)
    with office:
        client = office.client()
        stays, goes = client.conversations.create().id, client.conversations.create().id
        say(client, stays, "I remember")
        gone = say(client, goes, "I am forgotten")
        client.conversations.delete(goes)
        office.gateway.kill()
        office.gateway.start()
        client = office.client()
        assert [one["id"] for one in office.http("GET", "/v1/conversations").json()["data"]] == [stays]
        say(client, stays, "and go on")
        items = client.conversations.items.list(stays, order="asc")
        assert texts(items) == ["I remember", "AAA", "and go on", "AAA"]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone.id)
    for path in office.gateway.state.glob("conversations.db*"):
        assert b"I remember" not in path.read_bytes(), "sealed"


def test_the_quota_crowds_out_whole_conversations_and_first_what_later_turns_hold(
    tmp_path: Path, tiny_model: Path
) -> None:
    office = start(tmp_path, tiny_model, user_storage="1MiB")
    with office:
        client = office.client()
        old = client.conversations.create().id
        said = say(client, old, "old")
        long = client.conversations.create().id
        for number in range(15):  # 2.4 MB, since each turn holds those before it
            client.conversations.items.create(long, items=[{"role": "user", "content": f"{number} " + "x" * 20_000}])
        listed = [one["id"] for one in office.http("GET", "/v1/conversations").json()["data"]]
        assert listed == [long]
        found = texts(client.conversations.items.list(long, order="asc", limit=100))
        assert [text.split()[0] for text in found] == [str(number) for number in range(15)], "no text of it is lost"
        with closing(sqlite3.connect(office.gateway.state / "conversations.db")) as connection:
            turns = [id_ for (id_,) in connection.execute("SELECT id FROM records")]
            [(used,)] = connection.execute("SELECT max(bytes) FROM usage")
        assert said.id not in turns
        assert len(turns) < 15
        assert used <= 1 << 20


async def test_a_replaced_key_keeps_the_history_and_ends_the_connections_of_the_old_one(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    office = await asyncio.to_thread(start, tmp_path, tiny_model)

    def rotate(*options: str) -> str:
        """A new key for anna."""
        assert main(["keys", "rotate", "anna", f"--state-dir={office.gateway.state}", *options]) == 0
        return capsys.readouterr().out.strip()

    with office:
        kept = (await asyncio.to_thread(office.client().conversations.create)).id
        async with office.socket() as socket:
            office.keys.append(await asyncio.to_thread(rotate))
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(10):
                    await socket.recv()
        refused = office.http("GET", "/v1/conversations")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "was replaced" in refused.json()["error"]["message"]
        assert office.http("GET", f"/v1/conversations/{kept}", 2).status_code == 200
        office.keys.append(await asyncio.to_thread(rotate, "--grace=1h"))
        assert [office.http("GET", "/v1/conversations", user).status_code for user in (2, 3)] == [200, 200]
    assert await asyncio.to_thread(main, ["keys", "rotate", "nobody", f"--state-dir={office.gateway.state}"]) == 1
    assert "no user nobody has a valid key" in capsys.readouterr().err


def test_without_keys_conversations_stay_in_the_browser(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path / "state", model=tiny_model, context=512) as gateway:
        answers = [
            gateway.get("/v1/conversations"),
            gateway.post("/v1/conversations", {}),
            gateway.get("/v1/conversations/conv_1"),
            gateway.delete("/v1/conversations/conv_1"),
            gateway.get("/v1/conversations/conv_1/items"),
            gateway.post("/v1/responses", {"input": "x", "conversation": "conv_1"}),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "invalid_request")
            assert "samovar keys add NAME" in answer.json()["error"]["message"]
