"""The machine that benchmarks run on, and the folder for files that are expensive to create."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import time
from pathlib import Path
from typing import Final

import psutil

from gateway.config.machine import processor, schedulable_cpus
from gateway.models.catalogue import EMBEDDED, find

ROOT: Final = Path(__file__).resolve().parents[1]
ENGINE_PACKAGE: Final = "llama-cpp-python"


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/samovar/bench`: models, llama-server, results. It may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "samovar" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cores() -> int:
    """Return the processors that this process may use: the threads of both sides of a comparison."""
    return schedulable_cpus()


def machine() -> str:
    """Return the number of cores and the name of the processor."""
    return f"{cores()} x {processor()}"


def engine_version() -> str:
    """Return the version of llama-cpp-python, whose llama.cpp both sides run."""
    return importlib.metadata.version(ENGINE_PACKAGE)


REPORT: Final = ("docs/benchmarks.md", "docs/benchmarks.svg")
"""Files that benchmarks write."""


def revision() -> str:
    """Return the current commit, with `+` if files other than REPORT differ from it; empty outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    others = [f":(exclude){path}" for path in REPORT]
    changed = git("diff", "HEAD", "--stat", "--", ".", *others)
    return git("describe", "--always", "--abbrev=10", "--exclude=*") + ("+" if changed else "")


def embedded() -> Path:
    """Return the path of the embedded model."""
    return find(EMBEDDED).path


class Neighbours:
    """Measures the load of other processes, which makes a benchmark unreliable."""

    def __init__(self, server: psutil.Process) -> None:
        """Watch all processes except `server`, its children and this process, from now on."""
        self._server = server
        self._began = self._count()

    def _count(self) -> tuple[float, float]:
        """Return (monotonic seconds, processor seconds of other processes since boot)."""
        times = psutil.cpu_times()
        own = [psutil.Process(), self._server, *self._server.children(recursive=True)]
        spent = sum(sum(process.cpu_times()[:2]) for process in own)
        return time.monotonic(), sum(times) - times.idle - times.iowait - times.guest - times.guest_nice - spent

    def cores(self) -> float:
        """Return the average number of cores that others kept busy, including other guests of the hypervisor."""
        now, spent = self._count()
        return max(0.0, (spent - self._began[1]) / (now - self._began[0]))
