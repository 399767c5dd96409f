"""What one user said makes nothing faster for another, neither in an engine's memory nor from the store."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.commands import keys
from tests.support.running import Gateway

INSTRUCTIONS = "You are a samovar. " * 10
LONG = "In the kitchen stands a samovar, and nobody may know of it. " * 3


def cached(gateway: Gateway, key: str, text: str) -> int:
    """Tokens of the prompt that this user did not wait for."""
    request = {"input": text, "max_output_tokens": 5, "temperature": 0}
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{gateway.url}/v1/responses", json=request, headers=headers, timeout=30)
    return int(answer.raise_for_status().json()["usage"]["input_tokens_details"]["cached_tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True], ids=["in the engine", "from the store"])
def test_a_user_gains_nothing_from_what_another_said(tmp_path: Path, tiny_model: Path, restarted: bool) -> None:
    state = tmp_path / "state"
    state.mkdir()
    alice, bob = keys(state, "add", "alice"), keys(state, "add", "bob")
    with Gateway(state, model=tiny_model, context=512, instructions=INSTRUCTIONS) as gateway:
        assert cached(gateway, alice, LONG) == 0
        if restarted:
            gateway.stop()
            gateway.start()
        cached(gateway, bob, "?")  # his own template and the operator's instructions are his to gain by
        stranger = cached(gateway, bob, "Zebra")
        guess = cached(gateway, bob, LONG)
        own = cached(gateway, alice, LONG)
    # Only the operator's instructions are common; a guess of what alice said tells no more than any other text.
    assert 100 < stranger == guess < 250
    assert own > guess + 100
