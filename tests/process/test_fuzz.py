"""Malformed and hostile requests, seeded: each gets the right code, and the gateway stays as it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import hostile
from benchmarks.fuzz import Tally, send_all, send_hostile
from gateway.errors import ApiError
from gateway.prompts.constraints import form
from gateway.protocol.anthropic import read_messages
from gateway.protocol.chat import read_chat
from gateway.protocol.requests import decode, read_body
from gateway.protocol.tools import ErrorPaths, FunctionTool, JsonSchema, TextFormat
from gateway.protocol.values import fits
from tests.support.running import Gateway


async def test_malformed_frames_and_requests_get_the_right_code(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path, model=tiny_model, messages_per_minute=1_000_000) as gateway:
        tally = await send_all(int(gateway.url.rpartition(":")[2]), 600, seed=1)
        assert tally.wrong == {}
        assert tally.right > 500
        assert gateway.get("/readyz").status_code == 200
        assert gateway.log().count("Traceback") == 0


@pytest.mark.slow
async def test_no_request_that_is_nearly_right_is_the_gateways_fault_or_stops_a_lane(
    tmp_path: Path, tiny_model: Path
) -> None:
    with Gateway(tmp_path, model=tiny_model, messages_per_minute=1_000_000) as gateway:
        tally = Tally()
        await send_hostile(gateway.url, 240, Random(1), tally)
        assert tally.wrong == {}
        assert tally.right == 240
        assert "internal error" not in gateway.log()


def test_any_strict_schema_becomes_a_grammar_or_is_refused_by_name_and_any_other_becomes_one() -> None:
    draw, found = Random(1), Counter[bool]()
    for _ in range(600):
        schema = hostile.schema(draw)
        if not isinstance(schema, dict) or not fits(schema):
            continue
        try:
            form([], "auto", JsonSchema(name="x", schema=schema), ErrorPaths())
            found[True] += 1
        except ApiError as error:
            assert (error.code, bool(error.param)) == ("invalid_request", True), schema
            found[False] += 1
        tool = FunctionTool(name="f", parameters={**schema, "type": "object"})
        assert form([tool], "auto", TextFormat(), ErrorPaths()).grammar is not None
    assert min(found.values()) > 100  # else they are all valid, or all refused for one reason


@pytest.mark.parametrize(
    ("make", "read"),
    [(hostile.body, read_body), (hostile.chat_body, read_chat), (hostile.messages_body, read_messages)],
    ids=["responses", "chat", "messages"],
)
def test_any_body_is_read_or_refused_by_name(
    make: Callable[[Random], dict[str, Any]], read: Callable[[dict[str, Any]], object]
) -> None:
    draw, found = Random(1), Counter[str]()
    for _ in range(800):
        body = make(draw)
        try:
            read(decode(json.dumps(body)))
            found["read"] += 1
        except ApiError as error:
            found[error.code] += 1
    assert set(found) == {"read", "invalid_request", "unsupported_parameter"}
