"""Gateways that share a Redis, and a gateway whose cache is down, sealed with another key, or in memory."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache import KeyRing
from cache.memory import PREFIX, SHARED_MEMORY
from tests.support.redis_server import RedisServer
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway, said

ENDLESS = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 5}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server for one test."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A cache key file that several gateways use."""
    path = tmp_path / "cache.key"
    path.write_text(KeyRing.new().text)
    return path


def id_of(events: list[Any]) -> str:
    """Return the id of a response, whose text must be complete."""
    assert said(events) == "A" * 5, events[-1]
    return str(events[-1].response.id)


def tokens(events: list[Any]) -> int:
    """Return the number of tokens of prompt and response."""
    return int(events[-1].response.usage.total_tokens)


async def stored(gateway: Gateway, name: str, operation: str) -> None:
    """Wait until the gateway has counted a store operation."""
    for _ in range(500):
        if gateway.metric(name, operation=operation):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"no {operation} was counted")


@pytest.mark.slow
async def test_a_conversation_continues_at_another_gateway(
    tmp_path: Path, tiny_model: Path, redis: RedisServer, key: Path
) -> None:
    settings = {"model": tiny_model, "context": 512, "cache": redis.url, "cache_key": key}
    with Gateway(tmp_path / "a", **settings) as one, Gateway(tmp_path / "b", **settings) as two:
        async with one.connect() as conversation:
            first = await conversation.ask("茶炊是什么?", **ENDLESS)
        await stored(one, "samovar_store_operations_total", "put")
        async with two.connect() as conversation:
            second = await conversation.ask("?", previous_response_id=id_of(first), **ENDLESS)
            # All tokens but the last: it was sampled, and was never an input of the model.
            assert second[-1].response.usage.input_tokens_details.cached_tokens == tokens(first) - 1
        async with one.connect() as conversation:
            id_of(await conversation.ask("!", previous_response_id=id_of(second), **ENDLESS))
            stranger = await conversation.ask("!", previous_response_id=f"resp_{'0' * 32}", **ENDLESS)
            assert stranger[-1].error.code == "previous_response_not_found"


@pytest.mark.slow
async def test_without_redis_turns_continue_and_unknown_responses_are_store_unavailable(
    tmp_path: Path, tiny_model: Path, redis: RedisServer, key: Path
) -> None:
    redis.stop()
    with Gateway(tmp_path / "a", model=tiny_model, context=512, cache=redis.url, cache_key=key) as gateway:
        assert 'samovar_store_up{backend="redis"} 0.0' in gateway.get("/metrics").text
        async with gateway.connect() as conversation:
            first = id_of(await conversation.ask("茶炊是什么?", **ENDLESS))
            id_of(await conversation.ask("?", previous_response_id=first, **ENDLESS))
            unknown = await conversation.ask("!", previous_response_id=f"resp_{'0' * 32}", **ENDLESS)
            assert unknown[-1].error.code == "store_unavailable"


@pytest.mark.slow
async def test_a_redis_that_returns_after_an_outage_is_reported_and_used_again(
    tmp_path: Path, tiny_model: Path, redis: RedisServer
) -> None:
    def up() -> bool:
        return gateway.metric("samovar_store_up", backend="redis") == 1

    with Gateway(tmp_path / "a", model=tiny_model, context=512, cache=redis.url) as gateway:
        async with gateway.connect() as conversation:
            id_of(await conversation.ask("茶炊是什么?", **ENDLESS))
            assert up()
            redis.stop()
            for wanted in (False, True):
                for _ in range(300):
                    id_of(await conversation.ask("茶炊是什么?", **ENDLESS))
                    if up() is wanted:
                        break
                    await asyncio.sleep(0.1)
                assert up() is wanted
                if not wanted:
                    redis.start()


@pytest.mark.slow
async def test_a_cache_in_memory_ends_with_its_gateway(tmp_path: Path, tiny_model: Path) -> None:
    before = set(SHARED_MEMORY.glob(f"{PREFIX}*"))
    with Gateway(tmp_path / "a", model=tiny_model, context=512, cache="memory://") as gateway:
        assert gateway.metric("samovar_store_up", backend="memory") == 1
        assert len(set(SHARED_MEMORY.glob(f"{PREFIX}*")) - before) == 1
    assert set(SHARED_MEMORY.glob(f"{PREFIX}*")) <= before


@pytest.mark.slow
@pytest.mark.parametrize("what", ["conversations", "redis"])
def test_a_gateway_with_another_key_refuses_to_start_in_one_line(
    tmp_path: Path, tiny_model: Path, redis: RedisServer, key: Path, what: str
) -> None:
    first = tmp_path / "a"
    with Gateway(first, model=tiny_model, context=512, cache=redis.url, cache_key=key):
        pass
    key.write_text(KeyRing.new().text)
    state = first if what == "conversations" else tmp_path / "b"
    cache = redis.url if what == "redis" else "sqlite"
    flags = [f"--state-dir={state}", f"--cache={cache}", f"--cache-key={key}", f"--model={tiny_model}", "--port=0"]
    run = subprocess.run(
        [*SAMOVAR, "serve", *flags], env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.startswith("samovar: cache_key: ")
    assert "was sealed under the key" in run.stderr
    assert run.stderr.count("\n") == 1
