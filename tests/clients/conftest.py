"""Install the clients once per set of versions, apart from the gateway's packages, and start one gateway."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from filelock import FileLock

from tests import ROOT
from tests.support.miniature import write_miniature
from tests.support.running import Gateway

CLIENTS: Final = ROOT / "tests" / "clients"
INSTALL_SECONDS: Final = 900


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """`samovar serve` at default settings, with a miniature of the embedded model."""
    folder = tmp_path_factory.mktemp("clients")
    with Gateway(folder / "state", model=write_miniature(folder)) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def python_of(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """Return the Python of a virtual environment with the packages of a requirements file of this folder."""

    def python(requirements: str) -> Path:
        path = CLIENTS / requirements

        def install(folder: Path) -> None:
            run(pytestconfig, [sys.executable, "-m", "venv", folder])
            run(pytestconfig, [folder / "bin" / "python", "-m", "pip", "install", "--progress-bar=off", "-r", path])

        return installed(path, install) / "bin" / "python"

    return python


@pytest.fixture(scope="session")
def npm(pytestconfig: pytest.Config) -> Path:
    """A folder with the packages of `package.json` and the scripts of `npm/`."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("npm is not installed")
    path = CLIENTS / "package.json"

    def install(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(path, folder)
        run(pytestconfig, ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"], folder)

    folder = installed(path, install)
    for script in (CLIENTS / "npm").glob("*.js"):
        shutil.copy(script, folder)  # Node looks for packages beside the script
    return folder


def installed(versions: Path, install: Callable[[Path], None]) -> Path:
    """Return the folder for the content of the file `versions`; `install` fills it unless an earlier run did."""
    digest = hashlib.sha256(versions.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / ".venv" / f"clients-{digest}"
    complete = folder / ".complete"
    with FileLock(f"{folder}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            complete.touch()
    return folder


def run(config: pytest.Config, command: list[str | Path], folder: Path | None = None) -> None:
    """Run an installer; its output goes to the terminal, since it takes minutes."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nInstalling the clients: {' '.join(str(word) for word in command)}", flush=True)
        subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_SECONDS, env=os.environ)
