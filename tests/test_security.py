"""What docs/security.md claims is held by tests that exist, and what no other file tests is tested here."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.redis_server import RedisServer
from tests.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway
from tests.watched import watching

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "security.md").read_text()
CLAIM = re.compile(r"^\| (?P<claim>[^|]+\.) \| (?P<tests>[^|]*) \|$", re.MULTILINE)


def existing_tests() -> set[str]:
    """The names of all tests."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").glob("test_*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}


def test_every_claim_of_the_security_page_names_tests_that_exist() -> None:
    claims = {match["claim"]: re.findall(r"`(test_\w+)`", match["tests"]) for match in CLAIM.finditer(DOCUMENT)}
    assert len(claims) > 30
    assert [claim for claim, tests in claims.items() if not tests] == []
    assert set(re.findall(r"`(test_\w+)`", DOCUMENT)) - existing_tests() == set()


@pytest.mark.slow
async def test_a_gateway_and_its_engines_call_nobody(tmp_path: Path, tiny_model: Path) -> None:
    """But their cache, from first to last, by what the kernel is asked: no call is too short, and DNS is one."""
    with RedisServer(tmp_path) as redis, watching(tmp_path) as (watched, called):
        gateway = Gateway(tmp_path / "state", model=tiny_model, context=512, cache=redis.url)
        gateway.command = [*watched, *SAMOVAR]
        with gateway:
            async with gateway.connect() as conversation:
                first = await conversation.ask("Hello", max_output_tokens=5)
                await conversation.ask("?", max_output_tokens=5, previous_response_id=first[-1].response.id)
            for path in ("/", "/metrics", "/monitor", "/openapi.json", "/v1/models"):
                assert gateway.get(path).status_code == 200
    assert set(called) == {f"127.0.0.1:{redis.port}"}


def test_the_watch_sees_calls_that_last_no_time_and_datagrams_and_those_of_children(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, watching(tmp_path) as (watched, called):
        port = server.getsockname()[1]
        dial = f"socket.create_connection(('127.0.0.1', {port})).close()"
        ask = "socket.socket(type=socket.SOCK_DGRAM).sendto(b'?', ('127.0.0.1', 53))"
        leave = "socket.socket(socket.AF_UNIX).connect_ex('/nowhere')"
        code = f"import os, socket; os.fork() or ({dial}, {ask}, {leave}, os._exit(0)); os.wait()"
        subprocess.run([*watched, sys.executable, "-c", code], check=True)
    assert set(called) == {f"127.0.0.1:{port}", "datagrams", "127.0.0.1:53", "/nowhere"}


def test_an_audit_that_cannot_be_made_does_not_say_that_all_is_well() -> None:
    environment = {**CHILD_ENVIRONMENT, **dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")}
    audit = ["sh", str(ROOT / "deploy" / "audit.sh")]
    done = subprocess.run(audit, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Nothing was audited: ")
    assert done.stdout == ""
