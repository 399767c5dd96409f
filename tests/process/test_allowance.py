"""A daily allowance of tokens, in all APIs, and the usage that counts against it."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import SAMOVAR, Gateway

HELLO: list[dict[str, str]] = [{"role": "user", "content": "Hello"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "Hello"},
    "/v1/chat/completions": {"model": "tiny", "messages": HELLO},
    "/v1/completions": {"model": "tiny", "prompt": "Hello"},
    "/v1/messages": {"model": "tiny", "messages": HELLO, "max_tokens": 2},
    "/api/chat": {"model": "tiny", "messages": HELLO},
    "/api/generate": {"model": "tiny", "prompt": "Hello"},
}


async def keys(gateway: Gateway, *arguments: str) -> str:
    """Run `samovar keys` and return its output."""
    command = [*SAMOVAR, "keys", *arguments, f"--state-dir={gateway.state}"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    return str(done.stdout).strip()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("allowance"), model=tiny_model, context=512, max_output_tokens=2) as running:
        yield running


def until_midnight() -> int:
    now = time.localtime()
    return int(time.mktime((now.tm_year, now.tm_mon, now.tm_mday + 1, 0, 0, 0, 0, 0, -1)) - time.time())


async def test_a_used_up_allowance_is_refused_by_all_apis_until_it_is_raised(gateway: Gateway) -> None:
    key = await keys(gateway, "add", "anna", "--tokens-per-day", "1")
    async with gateway.connect(key) as conversation:
        assert (await conversation.ask("Hello"))[-1].type != "error"
        [refused] = await conversation.ask("Hello again")
        error = refused.to_dict()["error"]
        assert (error["code"], error["limit"]) == ("rate_limit_exceeded", "tokens_per_day")
        assert until_midnight() - 5 <= error["retry_after"] <= until_midnight() + 5
        for path, body in REQUESTS.items():
            answer = gateway.post(path, {**body, "stream": False}, Authorization=f"Bearer {key}")
            assert answer.status_code == 429, path
            assert abs(int(answer.headers["retry-after"]) - until_midnight()) < 60, path
        await keys(gateway, "limit", "anna", "--tokens-per-day", "none")
        for _ in range(100):  # of the connection that is open
            if (await conversation.ask("Hello again"))[-1].type != "error":
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("the allowance was never raised")


async def test_cached_tokens_do_not_count_against_the_allowance(gateway: Gateway) -> None:
    key = await keys(gateway, "add", "bert", "--tokens-per-day", "100000")
    counted = 0
    async with gateway.connect(key) as conversation:
        for text in ("A long question. " * 8, "And?", "And?"):
            usage = (await conversation.ask(text))[-1].response.usage
            counted += usage.total_tokens - usage.input_tokens_details.cached_tokens
        assert usage.input_tokens_details.cached_tokens > 0
    for _ in range(100):
        [bert] = [user for user in json.loads(await keys(gateway, "list", "--json")) if user["name"] == "bert"]
        if bert["requests_today"] == 3:
            break
        await asyncio.sleep(0.1)
    assert bert["tokens_today"] == counted
    assert "of 100,000" in await keys(gateway, "usage")
    rows = list(csv.DictReader((await keys(gateway, "usage", "--csv")).splitlines()))
    assert [(row["requests"], row["tokens"]) for row in rows if row["name"] == "bert"] == [("3", str(counted))]
