"""Engines killed, hung and unloaded at random under load: every request ends, no token is lost or doubled."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.running import Conversation, Gateway, said

SECONDS = 20
CLIENTS = 6
TOKENS = 150
# Byte 65 is the letter A: an answer's length tells whether a token was lost or doubled.
ENDLESS = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": TOKENS}

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


async def begun(talk: Conversation) -> list[Any]:
    """Events up to the first piece of an answer."""
    events = []
    async for event in talk.stream():
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    return events
