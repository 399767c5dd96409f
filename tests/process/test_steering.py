"""Steering: input for a running response goes to a successor on the same lane, or is returned as failed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gateway.protocol.events import RequiredOutput
from gateway.protocol.requests import InputMessage, ResponseCreate, parse
from gateway.protocol.steering import (
    PENDING,
    ResponseSteer,
    Steer,
    SteerError,
    Steering,
    accepted,
    failed,
    pending,
    required_input,
    steered,
    successor,
)
from tests.process.test_losses import ENDLESS, TERMINAL, receive, say, text, wire
from tests.support.events import check_types, plain
from tests.support.running import Gateway


def word(said: str, number: int = 1, parent: str = "resp_1") -> Steer:
    return Steer(f"steer_{number}", ResponseSteer(previous_response_id=parent, input=said))


def request(**fields: Any) -> ResponseCreate:
    message = parse(json.dumps({"type": "response.create", **fields}))
    assert isinstance(message, ResponseCreate)
    return message


def texts(create: ResponseCreate) -> list[str]:
    assert isinstance(create.input, list)
    return [item.text for item in create.input if isinstance(item, InputMessage)]


def test_a_successor_contains_all_steers_in_order_with_its_parents_settings() -> None:
    parent = request(input="hello", temperature=0.3, stream_id="a", previous_response_id="resp_0")
    follow = successor(parent, "resp_1", [word("no", 1), word("shorter", 2)])
    assert texts(follow) == ["no", "shorter"]
    assert (follow.temperature, follow.stream_id, follow.previous_response_id) == (0.3, "a", "resp_1")


def test_steers_that_waited_for_tool_results_precede_them() -> None:
    assert texts(steered(request(input="result"), [word("no")])) == ["no", "result"]
    response = {"output": [{"type": "message"}, {"type": "function_call", "call_id": "c", "name": "f"}]}
    assert required_input(response) == [RequiredOutput(call_id="c", name="f")]


def test_steers_are_bounded_and_taken_once() -> None:
    steering = Steering()
    for number in range(PENDING):
        steering.add(word("x", number))
    with pytest.raises(SteerError) as caught:
        steering.add(word("x"))
    assert caught.value.code == "too_many_pending_steers"
    assert len(steering.take_steers("resp_1")) == PENDING
    assert steering.take_steers("resp_1") == steering.waiting("resp_1") == []


def test_openais_types_accept_every_event() -> None:
    steer = word("no")
    raw = msgspec.to_builtins(steer.message)
    for event in (
        replace(accepted(steer), sequence_number=3),
        pending(steer, [RequiredOutput(call_id="c", name="f")], number=9),
        failed(SteerError("response_not_found", "gone"), raw, number=0),
        failed(SteerError("successor_creation_failed", "full"), raw, number=0, steer=steer.id),
    ):
        check_types(plain(event))


async def test_a_steered_answer_ends_and_its_successor_runs_on_the_same_lane(shared_server: Gateway) -> None:
    async with wire(shared_server) as socket:
        await say(socket, max_output_tokens=200, stream_id="a")
        before = await receive(socket, "response.output_text.delta")
        parent = before[0]["response"]["id"]
        await say(socket, max_output_tokens=1, stream_id="a", metadata={"next": "yes"})
        steer = {"type": "response.steer", "previous_response_id": parent, "input": "shorter!"}
        await socket.send(json.dumps(steer))
        events = before + await receive(socket, "response.incomplete")
        assert events[-1]["response"]["incomplete_details"] == {"reason": "steered"}
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == text(events)
        assert "response.steer.accepted" in [event["type"] for event in events]
        follow = await receive(socket, *TERMINAL)
        assert follow[0]["response"]["previous_response_id"] == parent
        assert follow[-1]["response"]["max_output_tokens"] == 200
        assert text(follow) == "A" * 200
        after = await receive(socket, *TERMINAL)
        assert after[0]["response"]["metadata"] == {"next": "yes"}
        assert {event["stream_id"] for event in [*events, *follow, *after]} == {"a"}
        items = shared_server.get(f"/v1/responses/{follow[0]['response']['id']}/input_items?order=asc").json()["data"]
        assert [item["content"][0]["text"] for item in items] == ["x", text(events), "shorter!"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"previous_response_id": "resp_0", "input": "x"}, "response_not_found"),
        ({"input": []}, "invalid_input"),
        ({"input": [{"type": "message", "role": "system", "content": "x"}]}, "invalid_input"),
        ({"input": "x", "stream_id": "a"}, "invalid_input"),
    ],
)
async def test_a_failed_steer_is_returned(shared_server: Gateway, fields: dict[str, Any], code: str) -> None:
    async with wire(shared_server) as socket:
        await say(socket, max_output_tokens=300)
        [created] = await receive(socket, "response.created")
        steer = {"type": "response.steer", "previous_response_id": created["response"]["id"], **fields}
        await socket.send(json.dumps(steer))
        refused = (await receive(socket, "response.steer.failed"))[-1]
        assert refused["error"]["code"] == code
        assert refused["steer"] == {name: steer[name] for name in ("previous_response_id", "input")}
        await socket.send(json.dumps({"type": "response.steer", "input": "x"}))
        assert (await receive(socket, "error"))[-1]["error"]["param"] == "previous_response_id"
        await socket.send(json.dumps({"type": "response.cancel", "response_id": created["response"]["id"]}))
        assert (await receive(socket, *TERMINAL))[-1]["response"]["status"] in ("cancelled", "incomplete")


async def test_a_request_that_only_encodes_its_context_cannot_be_steered(shared_server: Gateway) -> None:
    async with wire(shared_server) as socket:
        await say(socket, max_output_tokens=1, **ENDLESS)
        await receive(socket, *TERMINAL)
        for engine in shared_server.engines():
            engine.suspend()
        await say(socket, generate=False)
        [created] = await receive(socket, "response.created")
        steer = {"type": "response.steer", "previous_response_id": created["response"]["id"], "input": "x"}
        await socket.send(json.dumps(steer))
        assert (await receive(socket, "response.steer.failed"))[-1]["error"]["code"] == "steering_not_supported"
        for engine in shared_server.engines():
            engine.resume()
        assert (await receive(socket, *TERMINAL))[-1]["type"] == "response.completed"
