"""What docs/security.md claims is held by tests that exist, and what no other file tests is tested here."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.running import CHILD_ENVIRONMENT, Gateway

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
async def test_a_gateway_and_its_engines_call_nobody(tiny_server: Gateway) -> None:
    async with tiny_server.connect() as conversation:
        await conversation.ask("Hello", max_output_tokens=5)
        port = int(tiny_server.url.rpartition(":")[2])
        processes = [tiny_server.process, *tiny_server.process.children(recursive=True)]
        assert len(processes) > 1
        spoken = [(process.pid, line) for process in processes for line in process.net_connections("inet")]
    assert spoken, "the listener at least is one"
    assert {line.laddr.port for _, line in spoken} == {port}
    assert {pid for pid, _ in spoken} == {tiny_server.process.pid}
    assert {line.status for _, line in spoken} <= {psutil.CONN_LISTEN, psutil.CONN_ESTABLISHED, psutil.CONN_TIME_WAIT}


def test_an_audit_that_cannot_be_made_does_not_say_that_all_is_well() -> None:
    environment = {**CHILD_ENVIRONMENT, **dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")}
    audit = ["sh", str(ROOT / "deploy" / "audit.sh")]
    done = subprocess.run(audit, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Nothing was audited: ")
    assert done.stdout == ""
