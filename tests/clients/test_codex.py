"""Codex CLI with Samovar as a custom provider, over HTTP and over a WebSocket."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import INSTALL_SECONDS
from tests.support.running import CHILD_ENVIRONMENT, Gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 600)]
RUN_SECONDS = 500

CONFIG = """
model = "smollm2-135m-instruct"
model_provider = "samovar"
model_instructions_file = "instructions.md"

[model_providers.samovar]
name = "Samovar"
base_url = "{url}/v1"
wire_api = "responses"
supports_websockets = {websocket}
request_max_retries = 0
stream_max_retries = 0
"""


@pytest.mark.parametrize("websocket", [False, True])
def test_codex_holds_a_conversation(gateway: Gateway, npm: Path, tmp_path: Path, websocket: bool) -> None:
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    (home / "config.toml").write_text(CONFIG.format(url=gateway.url, websocket=str(websocket).lower()))
    (home / "instructions.md").write_text("Be brief.")
    codex: list[str | Path] = [npm / "node_modules" / ".bin" / "codex", "exec", "--skip-git-repo-check", "--json"]
    environment = {**CHILD_ENVIRONMENT, "CODEX_HOME": str(home), "RUST_LOG": "codex_api=info"}

    def turn(*arguments: str | Path) -> list[dict[str, Any]]:
        run = subprocess.run(
            [*codex, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr + run.stdout
        # It falls back to HTTP without a word to its user.
        assert ("successfully connected to Responses WebSocket" in run.stderr) is websocket
        return [json.loads(line) for line in run.stdout.splitlines()]

    # A prompt has 2 700 tokens, so that one of the two transports is enough for a second turn.
    for arguments in (["Say hi."], ["resume", "--last", "Again."])[: 1 if websocket else 2]:
        events = turn(*arguments)
        assert events[-1]["type"] == "turn.completed"
        assert any(event.get("item", {}).get("type") in ("agent_message", "command_execution") for event in events)
