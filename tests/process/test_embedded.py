"""The embedded model end to end, through the official client, as a new user meets it."""

from __future__ import annotations

import pytest

from gateway.models.catalogue import GET_QWEN
from tests.support.running import Gateway, said

pytestmark = pytest.mark.slow


async def test_a_conversation_of_several_turns_is_answered_and_cached(server: Gateway) -> None:
    async with server.connect() as conversation:
        first = await conversation.ask("My name is Ada. Say hello to me.", temperature=0, max_output_tokens=40)
        report = first[-1].response.usage
        assert said(first) == first[-1].response.output_text
        previous = first[-1].response.id
        second = await conversation.ask("What is my name?", previous_response_id=previous, temperature=0)
        assert second[-1].type == "response.completed"
        assert second[-1].response.usage.input_tokens > report.total_tokens
        cached = second[-1].response.usage.input_tokens_details.cached_tokens
        assert cached >= report.input_tokens + report.output_tokens - 1


async def test_events_come_in_the_order_that_the_clients_need(server: Gateway) -> None:
    async with server.connect() as conversation:
        kinds = [event.type for event in await conversation.ask("Hi", temperature=0, max_output_tokens=8)]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


async def test_two_connections_are_answered_at_once_by_two_engines(server: Gateway) -> None:
    async with server.connect() as one, server.connect() as two:
        for conversation in (one, two):
            await conversation.send({"type": "response.create", "input": "Tell me a story.", "max_output_tokens": 64})
        for conversation in (one, two):
            assert (await conversation.events())[-1].type in ("response.incomplete", "response.completed")
    assert len(server.engines()) == 2


async def test_instructions_are_followed_and_can_change(server: Gateway) -> None:
    async with server.connect() as conversation:
        first = await conversation.ask(
            "Hello!", instructions="Answer in one word.", temperature=0, max_output_tokens=30
        )
        second = await conversation.ask(
            "Hello again!", instructions="Answer at length.", previous_response_id=first[-1].response.id,
            temperature=0, max_output_tokens=30,
        )  # fmt: skip
    assert second[-1].response.instructions == "Answer at length."
    assert second[-1].response.usage.input_tokens > first[-1].response.usage.input_tokens


def test_the_start_says_in_both_languages_how_to_get_a_model_that_knows_chinese(server: Gateway) -> None:
    assert "samovar chat" in server.greeting
    assert "samovar models pull qwen2.5-0.5b-instruct-q4_k_m" in GET_QWEN
    assert server.greeting.splitlines()[1:3] == GET_QWEN.splitlines()
