"""Reproducible requests: their text is the same alone, in company, after a crash and a restart, and elsewhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from engine import Finished, Generate, Sampling, Tokens
from engine.process import EngineProcess
from tests.support.running import Conversation, Gateway, said

DRAWN: Final = Sampling(temperature=1.0, top_p=0.95, top_k=40, seed=3)
ENDLESS: Final = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1, logit_bias={65: 1000.0})
PROMPTS: Final = 200
ASKED: Final = {"input": "Tell me about tea. 茶炊是什么?", "seed": 7, "max_output_tokens": 120, "reproducible": True}
ASKED_MORE: Final = {"input": "And about coffee?", "seed": 8, "max_output_tokens": 60, "reproducible": True}
STARTS: Final = 24
"""Characters of an answer after which its engine is killed."""
COMPANY: Final = {"input": "a " * 60, "max_output_tokens": 300, "temperature": 0, "logit_bias": {"65": 100}}


def prompts() -> list[list[int]]:
    """Return prompts of 1 to 150 random bytes."""
    chance = random.Random(5)
    return [[chance.randrange(32, 120) for _ in range(chance.randint(1, 150))] for _ in range(PROMPTS)]


def reproducible(number: int, tokens: list[int]) -> Generate:
    return Generate(number, tokens, 20, DRAWN, "a", stored=False, reproducible=True)


async def generated(engine: EngineProcess, request: Generate) -> list[int]:
    """Run a request to its end and return its new tokens."""
    ids: list[int] = []
    async for message in engine.generate(request):
        match message:
            case Tokens():
                ids += message.ids
            case Finished():
                assert message.reason in ("stop", "length")
    return ids


async def occupy(engine: EngineProcess, lane: int) -> None:
    """Run other requests until cancelled, so that steps have several rows and cells lie anywhere."""
    for number in range(10_000 * (lane + 1), 10_000 * (lane + 2)):
        await generated(engine, Generate(number, [40 + number % 60] * (30 + number % 200), 40, ENDLESS, f"{lane}"))


@pytest.mark.slow
async def test_the_text_of_200_prompts_is_the_same_in_company_and_with_other_threads(engine: EngineProcess) -> None:
    engine.set_threads(1)
    alone = [await generated(engine, reproducible(number, tokens)) for number, tokens in enumerate(prompts())]
    engine.set_threads(2)
    company = [asyncio.create_task(occupy(engine, lane)) for lane in range(5)]
    together = [await generated(engine, reproducible(500 + number, tokens)) for number, tokens in enumerate(prompts())]
    for task in company:
        task.cancel()
    assert together == alone
    assert len({tuple(ids) for ids in alone}) > PROMPTS // 2


async def test_an_answer_that_is_continued_elsewhere_gets_the_same_tokens(engine: EngineProcess) -> None:
    tokens = prompts()[0] * 3
    whole = await generated(engine, reproducible(1, tokens))
    for count in range(1, len(whole)):
        rest = replace(reproducible(count + 1, [*tokens, *whole[:count]]), max_tokens=20 - count, generated=count)
        assert await generated(engine, rest) == whole[count:]


async def test_an_aborted_request_makes_room_for_the_next(engine: EngineProcess) -> None:
    first = replace(reproducible(1, [50] * 40), max_tokens=400, sampling=ENDLESS)
    waiting = asyncio.create_task(generated_or_aborted(engine, reproducible(2, [51] * 40)))
    answer = engine.generate(first)
    async for message in answer:
        if isinstance(message, Tokens):
            engine.abort(1)
        if isinstance(message, Finished):
            assert message.reason == "aborted"
    assert await waiting == ("length", 20)


async def generated_or_aborted(engine: EngineProcess, request: Generate) -> tuple[str, int]:
    """Return why a request ended, and its number of tokens."""
    count, reason = 0, ""
    async for message in engine.generate(request):
        match message:
            case Tokens():
                count += len(message.ids)
            case Finished():
                reason = message.reason
    return reason, count


@asynccontextmanager
async def company(gateway: Gateway) -> AsyncIterator[None]:
    """Four other conversations, which answer all the time."""

    async def talk() -> None:
        async with gateway.connect() as conversation:
            while True:
                await ask(conversation, COMPANY)

    tasks = [asyncio.create_task(talk()) for _ in range(4)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def two_turns(conversation: Conversation) -> tuple[str, str]:
    """Return the texts of a conversation of two reproducible turns."""
    first = await ask(conversation, ASKED)
    return said(first), said(await ask(conversation, ASKED_MORE, previous_response_id=first[-1].response.id))


async def ask(conversation: Conversation, question: dict[str, Any], **more: Any) -> list[Any]:
    """Return the events of an answer."""
    await conversation.send({"type": "response.create", **question, **more})
    return await conversation.events()


async def until_killed(gateway: Gateway, conversation: Conversation) -> list[Any]:
    """Ask, kill all engines in the middle of the answer, and return all events."""
    await conversation.send({"type": "response.create", **ASKED})
    events: list[Any] = []
    async for event in conversation.stream():
        events.append(event)
        if len(said(events)) >= STARTS:
            break
    gateway.kill_engines()
    return [*events, *await conversation.events()]


@pytest.mark.slow
async def test_the_text_is_the_same_whatever_else_the_gateway_does(tmp_path: Path, tiny_model: Path) -> None:
    settings: dict[str, object] = {"model": tiny_model, "context": 1024, "cores": 2}
    with Gateway(tmp_path / "one", engines=2, **settings) as gateway:
        async with gateway.connect() as conversation:
            expected = await two_turns(conversation)
            assert len(expected[0]) > STARTS
            async with company(gateway):
                assert await two_turns(conversation) == expected
                assert said(await until_killed(gateway, conversation)) == expected[0]
        gateway.stop()
        async with gateway.start().connect() as conversation:
            assert await two_turns(conversation) == expected
    with Gateway(tmp_path / "two", engines=1, **settings) as other:
        async with other.connect() as conversation:
            assert await two_turns(conversation) == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "x", "max_output_tokens": 8}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 8}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x"}], "stream": False}),
    ],
)
def test_all_apis_accept_the_field(shared_server: Gateway, path: str, body: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"temperature": 1, "reproducible": True}
    if path == "/api/chat":
        fields = {"options": {**fields, "num_predict": 8}}
    answers = [shared_server.post(path, {**body, **fields}).json() for _ in range(2)]
    ignored = shared_server.post(path, {**body, **fields}).headers.get("x-samovar-ignored")
    assert ignored is None
    texts = [answer_text(answer) for answer in answers]
    assert texts[0] == texts[1] != ""


def answer_text(answer: dict[str, Any]) -> str:
    """Return the text of an answer of any API."""
    if "output" in answer:
        return str(answer["output"][0]["content"][0]["text"])
    if "choices" in answer:
        choice = answer["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])
    if isinstance(answer.get("content"), list):
        return str(answer["content"][0]["text"])
    return str(answer["message"]["content"])
