"""A deleted response leaves no KV behind, and takes no more than its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running import Gateway

SAID = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 20}
UNLOAD_SECONDS = 0.5
LONG = "In the kitchen stands a samovar, and nobody may know of it. " * 3


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Gateway]:
    """A gateway that unloads its engines soon."""
    folder = tmp_path_factory.mktemp("forgetting")
    with Gateway(folder, model=tiny_model, context=512, idle_unload=UNLOAD_SECONDS) as gateway:
        yield gateway


async def ask(gateway: Gateway, text: str, **fields: Any) -> tuple[str, int]:
    """The response's id, and how many tokens of its prompt were cached; asked by an engine that holds nothing."""
    async with asyncio.timeout(60):
        while gateway.engines():  # noqa: ASYNC110 - they end by themselves
            await asyncio.sleep(0.02)
    async with gateway.connect() as conversation:
        events = await conversation.ask(text, **SAID, **fields)
    response = events[-1].response
    return response.id, response.usage.input_tokens_details.cached_tokens


def delete(gateway: Gateway, response: str) -> None:
    """Over HTTP, as the official client does."""
    answer = httpx.delete(f"{gateway.url}/v1/responses/{response}", timeout=10)
    assert answer.json()["deleted"] is True


@pytest.mark.slow
async def test_a_deleted_response_leaves_no_block_behind(gateway: Gateway) -> None:
    first, cached = await ask(gateway, LONG)
    assert cached == 0
    again, cached = await ask(gateway, LONG)
    assert cached > 100
    for response in (first, again):
        delete(gateway, response)
    last, cached = await ask(gateway, LONG)
    assert cached == 0
    delete(gateway, last)


@pytest.mark.slow
async def test_an_engine_that_goes_on_holds_nothing_of_a_deleted_response(tiny_server: Gateway) -> None:
    async with tiny_server.connect() as conversation:
        first = (await conversation.ask(LONG, **SAID))[-1].response
        second = (await conversation.ask("And?", previous_response_id=first.id, **SAID))[-1].response
        delete(tiny_server, second.id)
        third = (await conversation.ask("And?", previous_response_id=first.id, **SAID))[-1].response
        # The tokens of the first turn, the last of which the second one computed, and no others.
        assert third.usage.input_tokens_details.cached_tokens == first.usage.total_tokens
        for response in (third, first):
            delete(tiny_server, response.id)
        last = (await conversation.ask(LONG, **SAID))[-1].response
        assert last.usage.input_tokens_details.cached_tokens == 0


@pytest.mark.slow
async def test_what_a_deleted_response_went_on_from_keeps_its_blocks(gateway: Gateway) -> None:
    first, _ = await ask(gateway, LONG)
    second, whole = await ask(gateway, "And who drinks from it?", previous_response_id=first)
    delete(gateway, second)
    assert (await ask(gateway, "And who drinks from it?", previous_response_id=first))[1] == whole > 100


@pytest.mark.slow
async def test_the_operators_instructions_stay_when_what_followed_them_goes(tmp_path: Path, tiny_model: Path) -> None:
    instructions = "You are a samovar. " * 10
    settings = {"model": tiny_model, "context": 512, "idle_unload": UNLOAD_SECONDS}
    with Gateway(tmp_path, instructions=instructions, **settings) as gateway:
        first, _ = await ask(gateway, "Tea?")
        delete(gateway, first)
        _, cached = await ask(gateway, "Tea?")
    assert 100 < cached < 250
