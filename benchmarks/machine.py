"""The machine that benchmarks run on, and the folder for files that are expensive to create."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path
from typing import Final

from engine import bandwidth
from engine.stopwatch import Question
from engine.tuning import Watch
from gateway.cli.figures import figure
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


def processors() -> str:
    """Return the number of cores and the name of the processor."""
    return f"{cores()} x {processor()}"


def machine() -> str:
    """Return cores, processor and memory bandwidth, as measured now: one processor's name stands for many machines."""
    return f"{processors()}, {figure(bandwidth(cores()) / 1e9)} GB/s"


def single_row(model: Path) -> float:
    """Return the seconds of a decode step with one row on all cores, measured now."""
    with Watch(model) as watch:
        watch.wait()
        watch.ask(Question("decode", cores(), 1, budget=1.0))
        return float(watch.wait())


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
