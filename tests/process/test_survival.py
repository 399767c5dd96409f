"""Engines killed under load and during a response: no token is lost, duplicated or changed."""

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
from tests.support.running import Conversation, Gateway, said

SECONDS = 4.0
CLIENTS = 6
TOKENS = 150
# Byte 65 is the letter A: the length of a response shows whether a token was lost or duplicated.
ENDLESS = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": TOKENS}
# Sampling parameters that depend on earlier tokens: on their number (seed), and on the tokens (penalties).
DRAWN: dict[str, Any] = {
    "type": "response.create", "input": "hello",
    "temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 5, "max_output_tokens": 450,
    "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.2,
}  # fmt: skip
WORDS = {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 14, "maxItems": 14}
FORM = {"format": {"type": "json_schema", "name": "words", "schema": WORDS}}

pytestmark = pytest.mark.slow


async def talk(server: Gateway, client: int, until: float, ended: Counter[str]) -> None:
    """Run conversations of two turns, one after another. The context of the tiny model holds two turns."""
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
    """Kill a random engine at random times, until `until`."""
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        engines = server.engines()
        if engines:
            with suppress(psutil.NoSuchProcess):
                engine = chance.choice(engines)
                engine.kill()
                killed.append(engine.pid)


async def test_no_token_is_lost_when_engines_are_killed_at_random(tmp_path: Path, tiny_model: Path) -> None:
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


async def test_responses_continue_when_all_engines_are_killed_at_once(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path, model=tiny_model, context=512, engines=2, cores=2) as server:
        async with server.connect() as one, server.connect() as two:
            talks, received = (one, two), []
            for talk in talks:
                await talk.send({"type": "response.create", "input": "hello", **ENDLESS, "max_output_tokens": 300})
                received.append(await first_events(talk))
            server.kill_engines()
            for talk, events in zip(talks, received, strict=True):
                assert said([*events, *await talk.events()]) == "A" * 300


@pytest.fixture
def alone(tmp_path: Path, tiny_model: Path) -> Iterator[Gateway]:
    """A gateway with one engine of one thread and few cells, which makes rounding and texts reproducible."""
    with Gateway(tmp_path, model=tiny_model, context=512, engines=1, cores=1) as server:
        yield server


@pytest.mark.parametrize("form", [{}, {"text": FORM}], ids=["free", "schema"])
async def test_a_response_has_the_same_text_when_its_engine_is_killed(alone: Gateway, form: dict[str, Any]) -> None:
    question = {**DRAWN, **form}
    async with alone.connect() as talk:
        text, end = await undisturbed(alone, talk, question)
        events = await disturbed(alone, talk, text[:BLOCK], question)
    assert (said(events), events[-1].type) == (text, end)
    if form:
        assert len(json.loads(text)) == len(json.loads(said(events))) == WORDS["minItems"]


async def test_a_stop_string_that_spans_a_crash_ends_the_response(alone: Gateway) -> None:
    async with alone.connect() as talk:
        text, _ = await undisturbed(alone, talk, DRAWN)
        before, stop = text[:BLOCK], text[BLOCK:-20]
        question = {**DRAWN, "stop": stop}
        assert await undisturbed(alone, talk, question) == (before, "response.completed")
        # Once all text before the stop string has arrived, its own tokens are generated and held back.
        events = await disturbed(alone, talk, before, question)
    assert (said(events), events[-1].type) == (before, "response.completed")


async def undisturbed(server: Gateway, talk: Conversation, question: dict[str, Any]) -> tuple[str, str]:
    """Return the text and last event of a response, once all its blocks are stored.

    An engine that continues the response after a block of letters (each at least one token) then recomputes only
    tokens that were computed one at a time: the wide steps of a prompt round differently.
    """
    await talk.send(question)
    events = await talk.events()
    blocks = -(-(events[-1].response.usage.total_tokens - 1) // BLOCK)  # the KV of the last token is never computed
    async with asyncio.timeout(10):
        with closing(sqlite3.connect(f"{(server.state / 'blocks.db').as_uri()}?mode=ro", uri=True)) as file:
            while True:
                if file.execute("SELECT count(*) FROM blocks").fetchone()[0] >= blocks:
                    return said(events), events[-1].type
                await asyncio.sleep(0.01)


async def disturbed(server: Gateway, talk: Conversation, received: str, question: dict[str, Any]) -> list[Any]:
    """Return the events of a response whose engine is killed when the text `received` has arrived."""
    [engine] = server.engines()
    await talk.send(question)
    events: list[Any] = []
    pace = asyncio.create_task(slow(engine))
    try:
        async for event in talk.stream():
            events.append(event)
            if engine.is_running() and said(events).startswith(received):
                engine.kill()
            if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
                break
    finally:
        pace.cancel()
    assert all(other != engine for other in server.engines()), "the response ended before its engine was killed"
    return events


async def slow(engine: psutil.Process) -> None:
    """Suspend an engine most of the time: it generates letters faster than a busy machine delivers them."""
    with suppress(psutil.NoSuchProcess):
        try:
            while True:
                engine.suspend()
                await asyncio.sleep(0.02)
                engine.resume()
                await asyncio.sleep(0.004)
        finally:
            engine.resume()


async def first_events(talk: Conversation) -> list[Any]:
    """Return the events up to the first delta of a response."""
    events = []
    async for event in talk.stream():
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    return events
