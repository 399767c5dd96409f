"""Standard streams that are closed, full or of another encoding, and paths in the C locale: never a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from gateway.cli.launcher import free_port
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway

COMMANDS = [["models", "list"], ["models", "list", "--json"], ["keys", "add", "anna"], ["--help"]]


def shell(redirections: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `samovar` with a shell's redirections."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *SAMOVAR, *arguments],
        env={**CHILD_ENVIRONMENT, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_on_a_full_disk_is_one_line(tmp_path: Path, command: list[str]) -> None:
    run = shell(">/dev/full", *command, *([] if "--help" in command else [f"--state-dir={tmp_path}"]))
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "samovar: the output can't be written: No space left on device"
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_closed_output_pipe_ends_a_command_silently(tmp_path: Path, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [*command, *([] if "--help" in command else [f"--state-dir={tmp_path}"])]
    run = subprocess.run(
        [*SAMOVAR, *arguments], env=CHILD_ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert run.returncode == 1
    assert "samovar:" not in run.stderr
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr


@pytest.mark.parametrize(
    ("command", "encoding"),
    [*((command, "ascii") for command in COMMANDS), (["--help"], "latin-1"), (["models", "list"], "gbk")],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_character_missing_in_the_encoding_is_no_error(tmp_path: Path, command: list[str], encoding: str) -> None:
    arguments = [*command, *([] if "--help" in command else [f"--state-dir={tmp_path}"])]
    run = subprocess.run(
        [*SAMOVAR, *arguments], env={**CHILD_ENVIRONMENT, "PYTHONIOENCODING": encoding, "LANG": "zh_CN.UTF-8"},
        capture_output=True, encoding=encoding, check=False,
    )  # fmt: skip
    assert (run.returncode, "Traceback" in run.stderr) == (0, False), run.stderr


def test_a_mistake_with_stderr_closed_or_full_has_its_exit_code() -> None:
    for redirection in ("2>&-", "2>/dev/full", "1>&- 2>&-"):
        assert shell(redirection, "serve", "--queue-timeout=soon").returncode == 2
        assert shell(redirection, "models", "path", "nowhere").returncode == 1


STREAMS = {
    "stdout full": (">/dev/full", {}),
    "stdout closed": (">&-", {}),
    "all closed": ("<&- >&- 2>&-", {}),
    "stderr full": ("2>/dev/full", {}),
    "latin-1": ("", {"PYTHONIOENCODING": "latin-1"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("streams", STREAMS)
def test_a_gateway_serves_whatever_its_streams_are(tmp_path: Path, tiny_model: Path, streams: str) -> None:
    redirections, environment = STREAMS[streams]
    state, port = tmp_path / "state", free_port()
    command = [*SAMOVAR, "serve", f"--port={port}", f"--state-dir={state}", f"--model={tiny_model}", "--context=512"]
    gateway = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command],
        env={**CHILD_ENVIRONMENT, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        transport = httpx.HTTPTransport(retries=8)  # waits half a second, doubled each time
        with httpx.Client(transport=transport, timeout=60) as client:
            body = {"input": "Hi", "max_output_tokens": 2}
            assert client.post(f"http://127.0.0.1:{port}/v1/responses", json=body).status_code == 200
        gateway.terminate()
        output, errors = gateway.communicate(timeout=30)
    finally:
        gateway.kill()
    assert gateway.returncode == 0
    assert b"Traceback" not in errors
    assert b"???" not in output  # Chinese lines are omitted if they cannot be printed
    # A library's output to a closed stderr must not be written into a database.
    for database in state.glob("*.db"):
        assert database.read_bytes()[:6] == b"SQLite"


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_chinese_paths_work_in_the_c_locale(tmp_path: Path, tiny_model: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "模型"
    folder.mkdir()
    gateway = Gateway(folder / "状态", model=shutil.copy(tiny_model, folder / "小.gguf"), context=512)
    gateway.environment = {**CHILD_ENVIRONMENT, "LC_ALL": "C", **environment}
    with gateway:
        [model] = gateway.get("/v1/models").json()["data"]
        assert model["id"] == "小"
        answer = gateway.post("/v1/responses", {"input": "Hi", "max_output_tokens": 2})
        assert answer.status_code == 200
    assert (folder / "状态" / "conversations.db").exists()


def test_a_path_that_is_not_utf_8_is_rejected_in_one_line(tmp_path: Path, tiny_model: Path) -> None:
    model = os.fsencode(tmp_path) + b"/caf\xe9.gguf"
    shutil.copy(os.fsencode(tiny_model), model)
    command = [*map(os.fsencode, SAMOVAR), b"serve", b"--port=0", b"--model=" + model, b"--state-dir=" + model + b"x"]
    run = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("samovar: model: is not valid utf-8; rename")
    assert run.stderr.count("\n") == 1
