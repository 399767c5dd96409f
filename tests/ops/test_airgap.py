"""A folder that is carried to a machine without a network: installed whole, or not at all.

What the packages of others weigh is not carried here: they are on the path already, which pip takes for installed. All
the rest is as an administrator does it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.running import CHILD_ENVIRONMENT, Gateway

SCRIPT = ROOT / "deploy" / "airgap.sh"
DEAD = "http://127.0.0.1:9"
"""Where no proxy is: whoever tries to reach a network fails at once."""


def airgap(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the folder's own script."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), DEAD)
    here = {"PYTHON": sys.executable, "PYTHONPATH": sysconfig.get_path("purelib")}
    return subprocess.run(
        ["sh", folder / "airgap.sh", *arguments],
        env={**CHILD_ENVIRONMENT, **nowhere, **here, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def carried(tmp_path: Path, wheel: Path, tiny_model: Path) -> Path:
    """A folder as `pack` leaves it, with a model of the house's own."""
    folder = tmp_path / "carried"
    for name in ("wheels", "models", "deploy", "docs", "grafana"):
        (folder / name).mkdir(parents=True)
    shutil.copy(SCRIPT, folder)
    shutil.copy(wheel, folder / "wheels")
    shutil.copy(tiny_model, folder / "models" / "ours.gguf")
    for name in ("CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "made-for").write_text(f"{platform.python_version()} {platform.machine()}\n")
    assert airgap(folder, "seal", folder).returncode == 0
    return folder


@pytest.mark.slow
def test_what_was_carried_is_installed_and_serves_without_a_network(tmp_path: Path, carried: Path) -> None:
    target, data = tmp_path / "opt", tmp_path / "data"
    (data / "samovar").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(data / "samovar", 65534, 65534)  # as the service's user has it
    done = airgap(carried, "install", target, XDG_DATA_HOME=str(data))
    assert done.returncode == 0, done.stderr
    for path in (data / "samovar" / "models", data / "samovar" / "models" / "ours.gguf"):
        assert path.owner() == (data / "samovar").owner()
    assert (target / ".venv" / "bin" / "samovar").exists()
    assert (target / "LICENSE").exists()
    gateway = Gateway(tmp_path / "state", model="ours", context=512)
    gateway.command = [str(target / ".venv" / "bin" / "samovar")]
    gateway.environment = {
        **CHILD_ENVIRONMENT,
        "XDG_DATA_HOME": str(data),
        "PYTHONPATH": f"{target}/.venv/lib/python3.{sys.version_info.minor}/site-packages"
        f"{os.pathsep}{sysconfig.get_path('purelib')}",
    }
    with gateway:
        assert gateway.get("/v1/models").json()["data"][0]["id"] == "ours"
    again = airgap(carried, "install", target, XDG_DATA_HOME=str(data))
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_what_was_changed_on_the_way_is_not_installed(tmp_path: Path, carried: Path) -> None:
    with (carried / "models" / "ours.gguf").open("r+b") as file:
        file.write(b"something else")
    done = airgap(carried, "install", tmp_path / "opt")
    assert done.returncode == 1
    assert "Nothing was installed" in done.stderr
    assert not (tmp_path / "opt").exists()


@pytest.mark.slow
def test_another_python_or_processor_is_reported_before_anything_is_installed(tmp_path: Path, carried: Path) -> None:
    (carried / "made-for").write_text("3.9 pdp11\n")
    assert airgap(carried, "seal", carried).returncode == 0
    done = airgap(carried, "install", tmp_path / "opt")
    assert done.returncode == 1
    assert "Packed for Python and processor 3.9 pdp11" in done.stderr
    assert not (tmp_path / "opt").exists()


def test_a_mistake_is_reported_in_one_line_or_by_the_usage(tmp_path: Path) -> None:
    assert airgap(SCRIPT.parent).returncode == 2
    assert "pack FOLDER" in airgap(SCRIPT.parent, "pak").stderr
    (tmp_path / "file").touch()
    assert airgap(SCRIPT.parent, "pack", tmp_path).stderr.endswith("is not empty; name a new folder.\n")
    missing = airgap(SCRIPT.parent, "pack", tmp_path / "new", "no-such-model", XDG_DATA_HOME=str(tmp_path))
    assert "samovar models pull no-such-model" in missing.stderr
    assert airgap(SCRIPT.parent, "install").stderr.startswith("This is not a packed folder.")
