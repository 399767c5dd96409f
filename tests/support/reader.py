"""A reader who types the README's blocks, in order, in a fresh clone, and leaves nothing running."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from deploy.setup.environment import Environment
from gateway.cli.launcher import free_port
from tests import ROOT
from tests.support.readme import Block
from tests.support.typist import type_lines

CLONE = re.compile(r"git clone (?:--?\S+ )*(?P<address>\S+)")
PORT = re.compile(r"((?<=:)|(?<=PORT=)|(?<=--port )|(?<=--port=))8000\b")
OTHER_PORT = re.compile(r"(?:PORT=|--port[ =])(\d+)")
ONLY_LOOKED_UP = re.compile(r"\bmake (?=(?:test|bench)\b)")
NOT_INHERITED = re.compile(r"ARGS|BENCH|MODEL|PORT|MAKE.*|MFLAGS|GIT_.*|SAMOVAR_.*|PYTEST_.*|VIRTUAL_ENV|PYTHONPATH")
BLOCK_SECONDS = 90.0
READY_SECONDS = 60.0
LEAVE_SECONDS = 20.0


class BlockFailedError(Exception):
    """A block did not do what its reader expects; the message holds its output."""


class Background:
    """A command that keeps running, as in a terminal of its own."""

    def __init__(self, script: str, cwd: Path, env: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for a condition. Raises BlockFailedError if the command ends before it holds, or it never does."""
        deadline = time.monotonic() + READY_SECONDS
        while not holds():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BlockFailedError(f"{what} did not come:\n{self.output()}")
            time.sleep(0.05)

    def stop(self) -> str:
        """Press Ctrl-C, which reaches every process of the terminal; returns all that was printed.

        Raises BlockFailedError, with the processes ended, if they do not leave.
        """
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise BlockFailedError(f"Ctrl-C did not end it:\n{self.output()}") from None
        return self.output()


class Reader:
    """Goes through a document's blocks with one folder, one set of variables and at most one background command."""

    def __init__(self, folder: Path, document: str, source: Path | None = None) -> None:
        """Sit down in `folder` with a clone of one's own, unless `source` is one already."""
        self._folder = folder
        self._port = free_port()
        self._source = source or snapshot(folder / "source")
        addresses = {found["address"] for found in CLONE.finditer(document)}
        self._cwd = folder / "home" if addresses else self._source
        self._cwd.mkdir(exist_ok=True)
        self._env = self._first_environment(addresses)
        self._background: Background | None = None

    def do(self, block: Block) -> None:
        """Type one block. Raises UnknownBlockError, BlockFailedError."""
        block.check()
        expected = block.argument("expect")
        if block.is_background:
            output = self._start(block, expected)
        elif (typed := block.argument("stdin")) is not None:
            script = self._script("\n".join(block.commands))
            lines = typed.splitlines(keepends=True)
            code, output = type_lines(["bash", "-ec", script], lines, self._cwd, self._env, BLOCK_SECONDS)
            if code:
                raise BlockFailedError(f"exit code {code}:\n{output}")
        elif block.language == "python":
            file = self._folder / f"line_{block.line}.py"
            file.write_text(self._script(block.text))
            output = self._run(f".venv/bin/python '{file}'")
        else:
            output = self._run(self._script("\n".join(block.commands)))
        if expected and expected not in output:
            raise BlockFailedError(f"{expected!r} is not in the output:\n{output}")

    def stop(self) -> str:
        """Leave what runs in the background with Ctrl-C and return what it printed; nothing if nothing runs."""
        background, self._background = self._background, None
        return background.stop() if background else ""

    def _start(self, block: Block, expected: str | None) -> str:
        """Run all commands but the last, start that one, and wait until it serves."""
        self.stop()
        *before, last = block.commands
        self._run(self._script("\n".join(before)))
        script = self._script(last)
        port = next(iter(OTHER_PORT.findall(script)), self._port)
        background = Background(script, self._cwd, self._env, self._folder / f"line_{block.line}.log")
        self._background = background
        background.wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), f"/readyz on port {port}")
        if expected:
            background.wait_until(lambda: expected in background.output(), repr(expected))
        return background.output()

    def _script(self, text: str) -> str:
        """A block's text with what must be another in a test: the port, and what would run these tests again."""
        return ONLY_LOOKED_UP.sub("make -n ", PORT.sub(str(self._port), text))

    def _run(self, script: str) -> str:
        """Run shell commands to their end; the next block goes on with their folder and variables."""
        state = self._folder / "variables"
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"trap 'env -0 > \"{state}\"' EXIT\n{script}"],
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=BLOCK_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise BlockFailedError(f"still running after {BLOCK_SECONDS:.0f} s:\n{output}") from None
        if process.returncode:
            raise BlockFailedError(f"exit code {process.returncode}:\n{output}")
        variables = dict(line.split("=", 1) for line in state.read_text().split("\0") if line)
        self._cwd = Path(variables.pop("PWD"))
        self._env = {name: value for name, value in variables.items() if name not in ("_", "SHLVL", "OLDPWD")}
        return output

    def _first_environment(self, addresses: set[str]) -> dict[str, str]:
        """The variables at the start: this user's, less those of the test run, with another port and state folder.

        git's own `insteadOf` makes a clone of the README's address a clone of the checkout.
        """
        inherited = {name: value for name, value in os.environ.items() if not NOT_INHERITED.fullmatch(name)}
        git = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_COUNT": str(len(addresses))}
        for number, address in enumerate(sorted(addresses)):
            git[f"GIT_CONFIG_KEY_{number}"] = f"url.{self._source.as_uri()}.insteadOf"
            git[f"GIT_CONFIG_VALUE_{number}"] = address
        return (
            inherited
            | git
            | {
                "PYTHON": sys._base_executable,  # type: ignore[attr-defined]
                "SAMOVAR_PORT": str(self._port),
                "SAMOVAR_STATE_DIR": str(self._folder / "state"),
                "SAMOVAR_SELF_TEST": "no",  # ten seconds of both cores for each page
                "SAMOVAR_MAX_OUTPUT_TOKENS": "32",  # of 1024 by default, for which a busy machine takes a minute
                "NO_PROXY": "127.0.0.1,localhost",
            }
        )


def snapshot(folder: Path) -> Path:
    """A repository that holds the checkout as it lies on the disk now, and its `.venv` by a link.

    The link is what saves a second compilation: installing into an empty folder is what `make test` began with.
    """
    for name in checked_out():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    if not Environment(folder, folder / ".venv").is_ready(tests=True):
        raise BlockFailedError(
            "The README is tried with what `make setup` installs: run it, or the tests by `make test`"
        )
    who = ["-c", "user.name=Reader", "-c", "user.email=reader@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], ["add", "-f", ".venv"], [*who, "commit", "-qm", "As it lies here"]):
        subprocess.run(["git", *command], cwd=folder, capture_output=True, check=True)
    return folder


def checked_out() -> list[Path]:
    """The files of the checkout that are the project's: not ignored by git, where this is a repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        names = [Path(name) for name in listing.stdout.split("\0") if name]
    else:
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*") if ".venv" not in path.relative_to(ROOT).parts]
    return [name for name in names if (ROOT / name).is_file()]  # git lists what was deleted since the last commit, too


def answers(url: str) -> bool:
    """Whether a URL answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - the URL is made above
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
