"""Child processes run the gateway's own code, whatever lies in the working folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from engine import environment, module_command
from tests import ROOT
from tests.support.running import CHILD_ENVIRONMENT, Gateway

SOURCES = [path for room in ("cache", "engine", "gateway") for path in (ROOT / room).rglob("*.py")]
CHILDREN = {name for path in SOURCES for name in re.findall(r'module_command\("([\w.]+)"', path.read_text())}
TRAP = "import pathlib; pathlib.Path({marker!r}).write_text(__name__); raise SystemExit(3)\n"
SCRIPT = "import sys; from gateway.cli import main; sys.exit(main())\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with modules named like Samovar's and like what it imports; `ran` appears when one of them is run."""
    folder = tmp_path / "hostile"
    trap = TRAP.format(marker=str(folder / "ran"))
    for package in ("cache", "gateway"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(trap)
    for module in ("engine", "msgspec", "numpy", "llama_cpp", "json", "sitecustomize"):
        (folder / f"{module}.py").write_text(trap)
    return folder


def test_every_child_is_started_by_the_one_function() -> None:
    assert {
        "engine.worker",
        "engine.quantization",
        "engine.quality",
        "engine.stopwatch",
        "gateway.models.inspection",
    } <= CHILDREN
    users = {path.relative_to(ROOT).as_posix() for path in SOURCES if "sys.executable" in path.read_text()}
    assert users == {"engine/child.py", "gateway/cli/streams.py"}  # the second starts no child: it runs itself again


@pytest.mark.parametrize("child", sorted(CHILDREN))
@pytest.mark.parametrize("search", ["", ":", "{folder}x:"])
def test_a_child_imports_nothing_from_the_working_folder(
    hostile: Path, child: str, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", search.format(folder=hostile))
    run = subprocess.run(
        module_command(child),
        cwd=hostile,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert not (hostile / "ran").exists()
    assert run.returncode in (0, 1, 2)  # it has no arguments, and the reader of documents needs none
    assert b"No module named" not in run.stderr


def test_a_child_loads_the_packages_of_its_parent() -> None:
    code = "import engine, os; print(os.path.dirname(os.path.dirname(engine.__file__)))"
    command = [*module_command("x")[:2], "-c", code]
    run = subprocess.run(command, cwd="/", env=environment(), capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["editable", "wheel"])
def test_a_gateway_in_a_hostile_folder_answers_with_its_own_code(
    hostile: Path, tmp_path: Path, tiny_model: Path, wheel: Path, installed: str
) -> None:
    script = tmp_path / "bin" / "samovar"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    gateway = Gateway(tmp_path / "state", model=tiny_model, context=512)
    gateway.command = ["env", "-C", str(hostile), sys.executable, str(script)]
    gateway.environment = {**CHILD_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    if installed == "wheel":
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
        gateway.environment["PYTHONPATH"] = str(tmp_path / "site")
    with gateway:
        answer = gateway.post("/v1/responses", {"input": "Hi", "max_output_tokens": 2})
        assert answer.status_code == 200
        [engine] = [process for process in gateway.engines() if process.is_running()][:1]
        assert "GOMP_SPINCOUNT" in engine.environ()
        loaded = engine.environ()["PYTHONPATH"].split(os.pathsep)[0]
    assert loaded == gateway.environment["PYTHONPATH"]
    assert not (hostile / "ran").exists()


def test_installed_packages_do_not_precede_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert environment()["PYTHONPATH"] == f"{ROOT}{os.pathsep}/somewhere"
    monkeypatch.setattr("site.getsitepackages", lambda: [str(ROOT)])
    assert environment()["PYTHONPATH"] == "/somewhere"
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in environment()


def test_threads_that_wait_for_each_other_give_up_the_core_unless_the_operator_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert int(environment()["GOMP_SPINCOUNT"]) <= 5000
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in environment()
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment()["GOMP_SPINCOUNT"] == "7"
