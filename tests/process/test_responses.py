"""The Responses protocol over a real WebSocket: lanes, contexts encoded ahead, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.running import Conversation, Gateway, said

# Byte 65 is the letter A; without a bias a random model may end its answer at any token.
ENDLESS: dict[str, Any] = {"logit_bias": {"65": 100}, "temperature": 0}
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


async def until(conversation: Conversation, enough: Callable[[list[Any]], bool], *, seconds: float = 60) -> list[Any]:
    """Return the events until `enough` returns true."""
    events: list[Any] = []
    async with asyncio.timeout(seconds):
        async for event in conversation.stream():
            events.append(event)
            if enough(events):
                return events
    raise AssertionError("the connection ended")


def ended(count: int) -> Callable[[list[Any]], bool]:
    """Return a predicate: whether so many responses have ended or were rejected."""
    return lambda events: sum(event.type in (*TERMINAL, "error") for event in events) == count


def usage(event: Any) -> tuple[int, int, int]:
    """Return (prompt tokens, of which cached, tokens of the answer)."""
    report = event.response.usage
    return report.input_tokens, report.input_tokens_details.cached_tokens, report.output_tokens


async def create(client: Conversation, text: str = "x", **fields: Any) -> None:
    await client.send({"type": "response.create", "input": text, "max_output_tokens": 5, **ENDLESS, **fields})


async def test_lanes_run_in_parallel_each_in_order_and_every_event_echoes_its_lane(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        await create(conversation, max_output_tokens=300, stream_id="slow")
        await create(conversation, max_output_tokens=2, stream_id="slow")
        await create(conversation, max_output_tokens=3, stream_id="quick.1")
        events = await until(conversation, ended(3))
        ends = [(event.stream_id, usage(event)[2]) for event in events if event.type in TERMINAL]
        assert ends == [("quick.1", 3), ("slow", 300), ("slow", 2)]
        for lane in ("slow", "quick.1"):
            kinds = [event.type for event in events if event.stream_id == lane]
            assert kinds[0] == "response.created"
        assert {event.stream_id for event in events} == {"slow", "quick.1"}
        assert all("stream_id" not in event.to_dict() for event in await conversation.ask("x", max_output_tokens=1))


async def test_a_lane_continues_a_response_of_another_lane(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        await create(conversation, "a prompt of this test alone", stream_id="a")
        first = (await until(conversation, ended(1)))[-1]
        await create(conversation, "y", stream_id="b", previous_response_id=first.response.id)
        second = (await until(conversation, ended(1)))[-1]
        assert second.stream_id == "b"
        assert usage(second)[1] == usage(first)[0] + 5 - 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True, "store": False}, "store"),
    ],
)
async def test_an_error_names_the_lane_of_its_request(
    shared_server: Gateway, fields: dict[str, Any], param: str
) -> None:
    async with shared_server.connect() as conversation:
        await create(conversation, stream_id="a", **fields)
        [error] = await until(conversation, ended(1))
        assert (error.to_dict()["stream_id"], error.error.param) == ("a", param)


async def test_a_lane_with_an_invalid_name_is_rejected(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        for name in ("", "a b", "a\n", "x" * 257, 5):
            await create(conversation, stream_id=name)
            [error] = await until(conversation, ended(1))
            assert (error.error.code, error.error.param) == ("invalid_request", "stream_id")


async def test_a_response_running_on_another_lane_cannot_be_continued_yet(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        await create(conversation, max_output_tokens=400, stream_id="a")
        [running] = await until(conversation, lambda events: len(events) == 1)
        with shared_server.suspended():
            await create(conversation, stream_id="b", previous_response_id=running.response.id)
            events = await until(conversation, ended(1))
        assert (events[-1].error.code, events[-1].error.param) == ("invalid_request", "previous_response_id")
        await conversation.send({"type": "response.cancel", "response_id": running.response.id})
        assert (await until(conversation, ended(1)))[-1].response.status == "cancelled"


async def test_the_next_turn_reuses_a_context_encoded_ahead(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        for text, fields in (("tea ", {"generate": False}), ("milk ", {"prompt_cache_options": {"prewarm": True}})):
            await create(conversation, text * 20, **fields)
            events = await until(conversation, ended(1))
            assert [event.type for event in events] == [
                "response.created", "response.in_progress", "response.completed",
            ]  # fmt: skip
            ahead = events[-1]
            assert (ahead.response.output, usage(ahead)[2]) == ([], 0)
            follow = await conversation.ask("?", previous_response_id=ahead.response.id, max_output_tokens=2, **ENDLESS)
            assert usage(follow[-1])[1] == usage(ahead)[0]
            assert said(follow) == "AA"


async def test_a_request_for_idle_engines_starts_after_all_others(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        await create(conversation, "long", max_output_tokens=300, stream_id="a")
        await until(conversation, lambda events: events[-1].type == "response.output_text.delta")
        with shared_server.suspended():
            await create(conversation, "idle", max_output_tokens=2, stream_id="b", when_idle=True)
            await until(conversation, lambda events: events[-1].type == "response.queued")
            await create(conversation, "short", max_output_tokens=2, stream_id="c")
            beginning = await until(conversation, lambda events: events[-1].type == "response.created")
        events = [*beginning, *await until(conversation, ended(3))]
        order = [event.stream_id for event in events if event.type == "response.incomplete"]
        started = [event.stream_id for event in events if event.type == "response.in_progress"]
        assert (sorted(order), order[-1], started) == (["a", "b", "c"], "b", ["c", "b"])


async def test_the_progress_of_a_long_prompt_is_reported_on_request(shared_server: Gateway) -> None:
    async with shared_server.connect() as conversation:
        for name, fields in (("asked for", {"return_progress": True}), ("not asked for", {})):
            events = await conversation.ask(f"{name}: " + "x" * 400, max_output_tokens=2, **ENDLESS, **fields)
            sent = [event.to_dict().get("prompt_progress") for event in events if event.type == "response.in_progress"]
            assert sent[0] is None
            assert len(sent) > 1 if fields else len(sent) == 1
            for progress in sent[1:]:
                assert 0 < progress["processed"] < progress["total"] == usage(events[-1])[0]


async def test_a_cancel_finds_its_response_from_any_lane_and_connection(shared_server: Gateway) -> None:
    async with shared_server.connect() as one, shared_server.connect() as other:
        await create(one, max_output_tokens=400, stream_id="a")
        [running] = await until(one, lambda events: len(events) == 1)
        await other.send({"type": "response.cancel", "response_id": running.response.id})
        last = (await until(one, ended(1)))[-1]
        assert (last.response.status, last.stream_id) == ("cancelled", "a")
