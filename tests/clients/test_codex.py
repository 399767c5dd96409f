"""Codex CLI with Samovar as a custom provider, over HTTP and over a WebSocket."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.clients.conftest import INSTALL_SECONDS
from tests.support.miniature import HELLO
from tests.support.running import CHILD_ENVIRONMENT, Gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 300)]
RUN_SECONDS = 120

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
COMMAND = "echo from the tool"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 12}},
    "required": ["answer"],
    "additionalProperties": False,
}


class Codex:
    """Codex in an empty folder."""

    def __init__(self, npm: Path, folder: Path, url: str, *, websocket: bool = False) -> None:
        """Configure Codex for the gateway at `url`."""
        home, self.folder = folder / "home", folder / "work"
        home.mkdir()
        self.folder.mkdir()
        (home / "config.toml").write_text(CONFIG.format(url=url, websocket=str(websocket).lower()))
        (home / "instructions.md").write_text("Be brief.")
        program = npm / "node_modules" / ".bin" / "codex"
        self.command: list[str | Path] = [program, "exec", "--skip-git-repo-check", "--json"]
        self.environment = {**CHILD_ENVIRONMENT, "CODEX_HOME": str(home), "RUST_LOG": "codex_api=info"}
        self.websocket = websocket

    def turn(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """Return the items of a turn, and last its end."""
        run = subprocess.run(
            [*self.command, *arguments], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr + run.stdout
        # Codex falls back to HTTP without a word to its user.
        assert ("successfully connected to Responses WebSocket" in run.stderr) is self.websocket
        *events, last = [json.loads(line) for line in run.stdout.splitlines()]
        assert last["type"] == "turn.completed"
        return [event["item"] for event in events if event["type"] == "item.completed"]


@contextmanager
def choosing(url: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Forward requests to the gateway at `url`, and make the choice that the small model does not make by itself.

    The first answer is a call of Codex's shell tool with `COMMAND`; once its output is there, the model calls no tool.
    Yields the address and the list of requests as Codex sent them.
    """
    requests: list[dict[str, Any]] = []

    class Forwarder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with httpx.stream("GET", url + self.path) as answer:
                self.forward(answer)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append(body)
            with httpx.stream("POST", url + self.path, json=chosen(body), timeout=RUN_SECONDS) as answer:
                self.forward(answer)

        def forward(self, answer: httpx.Response) -> None:
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers["content-type"])
            self.end_headers()
            for data in answer.iter_raw():
                self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - as the base class names it
            """Leave the terminal to pytest."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Forwarder) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def chosen(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request of Codex with the tool that the model must choose, if any."""
    if any(item["type"] == "function_call_output" for item in body["input"]):
        return {**body, "tool_choice": "none"}
    [shell] = [tool for tool in body["tools"] if tool.get("name") == "exec_command"]
    parameters = {**SCHEMA, "properties": {"cmd": {"const": COMMAND}}, "required": ["cmd"]}
    tools = [{**shell, "parameters": parameters} if tool is shell else tool for tool in body["tools"]]
    return {**body, "tools": tools, "tool_choice": {"type": "function", "name": "exec_command"}}


def test_codex_gets_an_answer_to_its_whole_prompt_over_a_websocket(gateway: Gateway, npm: Path, tmp_path: Path) -> None:
    [*_, message] = Codex(npm, tmp_path, gateway.url, websocket=True).turn("Say hi.")
    assert (message["type"], message["text"]) == ("agent_message", HELLO)


def test_codex_runs_the_command_that_the_model_calls_and_holds_a_conversation_in_json(
    gateway: Gateway, npm: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    with choosing(gateway.url) as (url, requests):
        codex = Codex(npm, tmp_path, url)
        turns = [
            codex.turn("--output-schema", schema, *words) for words in (["Say hi."], ["resume", "--last", "Again."])
        ]
    [command] = [item["command"] for item in turns[0] if item["type"] == "command_execution"]
    assert COMMAND in command
    for items in turns:
        assert json.loads(items[-1]["text"]).keys() == {"answer"}

    first, second, third = (request["input"] for request in requests)
    assert second[: len(first)] == first
    call, output = (item for item in second if item["type"].startswith("function_call"))
    assert (call["name"], call["call_id"]) == ("exec_command", output["call_id"])
    assert json.loads(call["arguments"]) == {"cmd": COMMAND}
    assert [item for item in third if item["type"].startswith("function_call")] == [call, output]
    assert third[-1]["content"][0]["text"] == "Again."
