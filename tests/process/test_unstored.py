"""`store: false` leaves nothing, whatever the store: neither on disk nor in Redis nor in the log."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.redis_server import RedisServer
from tests.support.running import Gateway

WHISPER = "nobody may know of the samovar"
LONG = f"In the kitchen they whisper: {WHISPER}. " * 4
ANSWER = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 20}
"""The tiny model generates A."""


def answer(file: Path, query: str) -> int:
    """What a database answers to a query for one number."""
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute(query).fetchone()[0])


async def whisper(gateway: Gateway, **fields: Any) -> str:
    """Two turns over a socket, and one by each route of HTTP: the id of the first, which the second continues."""
    async with gateway.connect() as conversation:
        first = (await conversation.ask(LONG, **ANSWER, **fields))[-1].response
        again = await conversation.ask(WHISPER, previous_response_id=first.id, **ANSWER, **fields)
        assert again[-1].response.usage.input_tokens_details.cached_tokens > 100
    assert gateway.post("/v1/responses", {"input": LONG, **ANSWER, **fields}).status_code == 200
    messages = [{"role": "user", "content": f"Chat: {LONG}"}]
    chat = {"messages": messages, "max_tokens": 20, "logit_bias": ANSWER["logit_bias"], **fields}
    assert gateway.post("/v1/chat/completions", chat).status_code == 200
    return str(first.id)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True], ids=["SQLite", "Redis"])
async def test_what_is_not_to_be_stored_is_nowhere(tmp_path: Path, tiny_model: Path, shared: bool) -> None:
    """Count rows and keys, because sealed data cannot be searched for text."""
    state = tmp_path / "state"
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(tmp_path)) if shared else None
        with Gateway(state, model=tiny_model, context=512, **({"cache": server.url} if server else {})) as gateway:
            response = await whisper(gateway, store=False)
        # Stopped: the engines have stored everything that was queued.
        assert answer(state / "conversations.db", "SELECT count(*) FROM records") == 0
        lies = [path.read_bytes() for path in state.rglob("*") if path.is_file()]
        if server is None:
            assert answer(state / "blocks.db", "SELECT count(*) FROM blocks") == 0
        else:
            with redis.Redis(port=server.port) as client:
                assert client.keys() == [b"samovar:key"]  # of which key's seals there would be
                lies.append(client.get("samovar:key") or b"")
    for text in (WHISPER, WHISPER[:10], response):
        assert text.encode() not in b"".join(lies)
    assert WHISPER[:10] not in gateway.log()
