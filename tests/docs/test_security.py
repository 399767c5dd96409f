"""What docs/security.md claims is held by tests that exist, and what no other file tests is tested here."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.redis_server import RedisServer
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway
from tests.support.watched import watching

DOCUMENT = (ROOT / "docs" / "security.md").read_text()
CLAIM = re.compile(r"^\| (?P<claim>[^|]+\.) \| (?P<tests>[^|]*) \|$", re.MULTILINE)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def existing_tests() -> dict[str, bool]:
    """All tests by name, and whether they demand something."""
    found: dict[str, bool] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function)]
        functions = {node.name: node for node in nodes}
        for name, function in functions.items():
            if name.startswith("test_"):
                found[name] = found.get(name, True) and demands(function, functions)
    return found


def demands(test: Function, functions: dict[str, Function]) -> bool:
    """Whether something in it, or in functions of its file that it names, can fail, and it is not left out."""
    nodes = [*ast.walk(test)]
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    words |= {node.id for node in nodes if isinstance(node, ast.Name)}
    nodes += [node for name in words & set(functions) for node in ast.walk(functions[name])]
    asserts = any(isinstance(node, ast.Assert) for node in nodes)
    return (asserts or bool(words & {"raises", "expect"})) and not words & {"skip", "xfail"}


def test_every_claim_of_the_security_page_names_tests_that_exist_and_can_fail() -> None:
    claims = {match["claim"]: re.findall(r"`(test_\w+)`", match["tests"]) for match in CLAIM.finditer(DOCUMENT)}
    assert len(claims) > 30
    assert [claim for claim, tests in claims.items() if not tests] == []
    named, existing = set(re.findall(r"`(test_\w+)`", DOCUMENT)), existing_tests()
    assert named - set(existing) == set()
    assert [name for name in named if not existing[name]] == []


def test_all_that_somebody_may_not_names_tests_too() -> None:
    """That they exist and can fail is looked at above, as of every test that the page names."""
    [section] = re.findall(r"## Who is trusted\n(.*?)\n## ", DOCUMENT, re.DOTALL)
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert head == ["who", "may", "may not", "held by"]
    denied = {who: re.findall(r"`(test_\w+)`", tests) for who, _, may_not, tests in rows if may_not}
    assert len(denied) > 5
    assert [who for who, tests in denied.items() if not tests] == []


def test_what_is_said_not_to_be_defended_is_not() -> None:
    """Whoever pins by digest takes the sentence out."""
    [said] = re.findall(r"## Not defended\n(.*?)\n## ", DOCUMENT, re.DOTALL)
    assert ("without hashes" in said) == ("--hash" not in (ROOT / "constraints.txt").read_text())
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    assert ("without digests" in said) == (b"@sha256:" not in b"".join(path.read_bytes() for path in files))


def test_systemd_states_the_exposure_that_the_page_states() -> None:
    [[version, stated]] = re.findall(r"`systemd-analyze security` of systemd (\d+) rates it ([\d.]+)\.", DOCUMENT)
    installed = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    unit = ROOT / "deploy" / "systemd" / "samovar.service"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    [exposure] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", found)
    assert exposure == stated or installed.split()[1] != version, "every version weighs other things"


@pytest.mark.slow
async def test_a_gateway_and_its_engines_open_no_outgoing_connection(tmp_path: Path, tiny_model: Path) -> None:
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
