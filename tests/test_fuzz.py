"""Malformed frames and requests, seeded: each gets the right code, and the gateway stays as it was."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz import send_all
from tests.running import Gateway


async def test_malformed_frames_and_requests_get_the_right_code(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path, model=tiny_model, messages_per_minute=1_000_000) as gateway:
        tally = await send_all(int(gateway.url.rpartition(":")[2]), 600, seed=1)
        assert tally.wrong == {}
        assert tally.right > 500
        assert gateway.get("/readyz").status_code == 200
        assert gateway.log().count("Traceback") == 0
