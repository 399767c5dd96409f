"""Engines killed at random under load, and one in the middle of one answer: no token is lost, doubled or another."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cache import BLOCK
from tests.running import Conversation, Gateway, said

SECONDS = 7.0
CLIENTS = 6
TOKENS = 150
# Byte 65 is the letter A: an answer's length tells whether a token was lost or doubled.
ENDLESS = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": TOKENS}
# All that an engine must know of the tokens before the crash: how many were drawn, and which of them are penalized.
DRAWN: dict[str, Any] = {
    "type": "response.create", "input": "hello",
    "temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 5, "max_output_tokens": 450,
    "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.2,
}  # fmt: skip
WORDS = {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 14, "maxItems": 14}
FORM = {"format": {"type": "json_schema", "name": "words", "schema": WORDS}}

pytestmark = pytest.mark.slow


async def talk(server: Gateway, client: int, until: float, ended: Counter[str]) -> None:
    """One conversation after another, of two turns each, which is what the tiny model's context holds."""
    turn = 0
    async with server.connect() as conversation:
        previous = None
        while time.monotonic() < until:
            events = await conversation.ask(f"{client}: hello", previous_response_id=previous, **ENDLESS)
            last = events[-1]
            if last.type == "error":
                assert last.error.code == "engine_unavailable"
                ended["error"] += 1
                continue
            ended[last.type] += 1
            assert set(said(events)) <= {"A"}
            if last.type == "response.incomplete":
                assert len(said(events)) == TOKENS
                turn += 1
            else:
                assert last.response.error.code == "engine_unavailable"
            previous = last.response.id if turn % 2 and last.type == "response.incomplete" else None


async def kill(server: Gateway, chance: random.Random, until: float, killed: list[int]) -> None:
    """Kill an engine now and then."""
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        engines = server.engines()
        if engines:
            with suppress(psutil.NoSuchProcess):
                engine = chance.choice(engines)
                engine.kill()
                killed.append(engine.pid)


async def test_a_pool_whose_engines_are_killed_at_random_serves_on_and_loses_no_token(
    tmp_path: Path, tiny_model: Path
) -> None:
    with Gateway(tmp_path, model=tiny_model, context=1024, engines=2, cores=2) as server:
        until = time.monotonic() + SECONDS
        ended: Counter[str] = Counter()
        talks = [talk(server, client, until, ended) for client in range(CLIENTS)]
        killed: list[int] = []
        await asyncio.gather(kill(server, random.Random(4), until, killed), *talks)
        assert killed
        assert ended["response.incomplete"] > 0
        async with server.connect() as conversation:
            assert said(await conversation.ask("still there?", **ENDLESS)) == "A" * TOKENS
        assert server.get("/readyz").status_code == 200


async def test_answers_go_on_when_all_engines_are_killed_at_once(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path, model=tiny_model, context=512, engines=2, cores=2) as server:
        async with server.connect() as one, server.connect() as two:
            talks, heard = (one, two), []
            for talk in talks:
                await talk.send({"type": "response.create", "input": "hello", **ENDLESS, "max_output_tokens": 300})
                heard.append(await begun(talk))
            for engine in server.engines():
                engine.kill()
            for talk, events in zip(talks, heard, strict=True):
                assert said([*events, *await talk.events()]) == "A" * 300


@pytest.fixture
def alone(tmp_path: Path, tiny_model: Path) -> Iterator[Gateway]:
    """One engine of one thread and few cells: where llama.cpp's sums are the same each time, and so are texts."""
    with Gateway(tmp_path, model=tiny_model, context=512, engines=1, cores=1) as server:
        yield server


@pytest.mark.parametrize("form", [{}, {"text": FORM}], ids=["free", "schema"])
async def test_an_answer_whose_engine_is_killed_in_the_middle_is_the_undisturbed_one(
    alone: Gateway, form: dict[str, Any]
) -> None:
    question = {**DRAWN, **form}
    async with alone.connect() as talk:
        text, end = await undisturbed(alone, talk, question)
        events = await disturbed(alone, talk, text[:BLOCK], question)
    assert (said(events), events[-1].type) == (text, end)
    if form:
        assert len(json.loads(text)) == len(json.loads(said(events))) == WORDS["minItems"]


async def test_a_stop_string_that_begins_before_a_crash_and_ends_after_it_ends_the_answer(alone: Gateway) -> None:
    async with alone.connect() as talk:
        text, _ = await undisturbed(alone, talk, DRAWN)
        before, stop = text[:BLOCK], text[BLOCK:-20]
        question = {**DRAWN, "stop": stop}
        assert await undisturbed(alone, talk, question) == (before, "response.completed")
        # When all that comes before it has been heard, it is being drawn, and held back: nobody hears any of it.
        events = await disturbed(alone, talk, before, question)
    assert (said(events), events[-1].type) == (before, "response.completed")


async def undisturbed(server: Gateway, talk: Conversation, question: dict[str, Any]) -> tuple[str, str]:
    """Text and last event of an answer, once all its blocks are stored.

    Then an engine that takes over after a block's worth of letters, which are as many tokens or more, computes only
    tokens again that were computed one at a time before: in a prompt's steps of many, sums have other low bits.
    """
    await talk.send(question)
    events = await talk.events()
    blocks = -(-(events[-1].response.usage.total_tokens - 1) // BLOCK)  # nobody needed the KV of the last token
    async with asyncio.timeout(10):
        with closing(sqlite3.connect(f"{(server.state / 'blocks.db').as_uri()}?mode=ro", uri=True)) as file:
            while True:
                if file.execute("SELECT count(*) FROM blocks").fetchone()[0] >= blocks:
                    return said(events), events[-1].type
                await asyncio.sleep(0.01)


async def disturbed(server: Gateway, talk: Conversation, heard: str, question: dict[str, Any]) -> list[Any]:
    """Events of an answer whose engine is killed when so much of it was `heard`."""
    [engine] = server.engines()
    await talk.send(question)
    events: list[Any] = []
    pace = asyncio.create_task(slow(engine))
    try:
        async for event in talk.stream():
            events.append(event)
            if engine.is_running() and said(events).startswith(heard):
                engine.kill()
            if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
                break
    finally:
        pace.cancel()
    assert all(other != engine for other in server.engines()), "it ended before its engine was killed"
    return events


async def slow(engine: psutil.Process) -> None:
    """Stop an engine most of the time: it draws letters faster than a busy machine lets anyone hear them."""
    with suppress(psutil.NoSuchProcess):
        try:
            while True:
                engine.suspend()
                await asyncio.sleep(0.02)
                engine.resume()
                await asyncio.sleep(0.004)
        finally:
            engine.resume()


async def begun(talk: Conversation) -> list[Any]:
    """Events up to the first piece of an answer."""
    events = []
    async for event in talk.stream():
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    return events
