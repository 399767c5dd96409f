"""The house rules that a machine can hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"gateway": {"engine", "cache"}, "engine": {"cache"}, "cache": set[str]()}
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_the_checkers_find_nothing(command: list[str]) -> None:
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_rooms_meet_only_at_their_doors() -> None:
    wrong = []
    for path in SOURCES:
        room = path.relative_to(ROOT).parts[0]
        for name in imported(path):
            other, _, inside = name.partition(".")
            if other in ROOMS and other != room and (other not in ROOMS[room] or inside):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_ctypes_stops_at_one_file() -> None:
    users = {p.relative_to(ROOT).as_posix() for p in SOURCES if {"ctypes", "llama_cpp"} & set(imported(p))}
    assert users == {"engine/llama.py"}


def test_no_file_hides_a_second_noun() -> None:
    assert [p.name for p in SOURCES if len(p.read_text().splitlines()) > 400] == []


def test_constraints_pin_versions_and_name_no_address() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "llama_cpp_python==0.3.36" in lines
    assert [line for line in lines if "==" not in line or "/" in line] == []
