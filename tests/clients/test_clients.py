"""Each client does what docs/clients.md says that it was seen to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, INSTALL_SECONDS
from tests.clients.table import rows
from tests.support.running import CHILD_ENVIRONMENT, Gateway

# The first test installs the clients.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 300)]
RUN_SECONDS = 120
OWN_ENVIRONMENT = {"instructor_client.py": "requirements-instructor.txt"}


def said(command: list[str | Path], folder: Path) -> set[str]:
    """Return the lines that a script prints."""
    run = subprocess.run(
        command, cwd=folder, env=CHILD_ENVIRONMENT, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split("\n")) - {""}


@pytest.mark.parametrize("script", sorted(path.name for path in CLIENTS.glob("python/*.py")))
def test_a_python_client_does_what_the_table_says(
    gateway: Gateway, python_of: Callable[[str], Path], script: str, tmp_path: Path
) -> None:
    python = python_of(OWN_ENVIRONMENT.get(script, "requirements.txt"))
    seen = said([python, CLIENTS / "python" / script, f"{gateway.url}/v1"], tmp_path)
    assert seen == rows()[f"python/{script}"].seen


@pytest.mark.parametrize("script", sorted(path.name for path in CLIENTS.glob("npm/*.js")))
def test_an_npm_client_does_what_the_table_says(gateway: Gateway, npm: Path, script: str) -> None:
    assert said(["node", script, f"{gateway.url}/v1"], npm) == rows()[f"npm/{script}"].seen
