"""Both sides of a comparison as users run them: processes on free ports of 127.0.0.1, stopped by their handle."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil

from benchmarks.machine import cache_folder, cores
from benchmarks.rival import program
from engine import engines_of

Found = TypeVar("Found")
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
CONTEXT_A_STREAM: Final = 2048
"""Cells of llama-server per stream: the longest load takes about 1 300."""


class ServerError(Exception):
    """A server did not start; the text contains the end of its log."""


@dataclass(frozen=True)
class Server:
    """A server that is ready for requests."""

    port: int
    process: psutil.Process
    ready_seconds: float
    """Time from start to ready."""

    def kill(self) -> None:
        """Send SIGKILL to all of its processes, which simulates a power cut."""
        for process in [*self.process.children(recursive=True), self.process]:
            process.kill()

    def engines(self) -> list[psutil.Process]:
        """Samovar's engine processes."""
        return engines_of(self.process)


@contextlib.contextmanager
def samovar(
    model: Path, *, state: Path | None = None, tuned: Path | None = None, **settings: object
) -> Iterator[Server]:
    """Run `samovar serve` with the default settings, except `settings`. Raises ServerError.

    Without `state` it uses a temporary state folder, with the plan from the folder `tuned` if given (see `tune`).
    """
    with contextlib.ExitStack() as stack:
        folder = state or stack.enter_context(tempfile.TemporaryDirectory(prefix="samovar-bench-"))
        if tuned is not None:
            shutil.copytree(tuned, folder, dirs_exist_ok=True)
        flags = {"port": 0, "model": model, "state_dir": folder, **settings}
        command = [sys.executable, "-m", "gateway.cli", "serve"]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        began = time.perf_counter()
        process, log = stack.enter_context(_running(command))
        port = _wait(process, log, lambda: _greeted(log))
        _wait(process, log, lambda: _answers(f"http://127.0.0.1:{port}/readyz"))
        yield Server(port, psutil.Process(process.pid), time.perf_counter() - began)


def tune(model: Path) -> Path:
    """Return a state folder with this machine's plan for `model`, measured at the first call: about a minute."""
    folder = cache_folder() / f"tuned-{model.stem}"
    if not (folder / "plans").is_dir():
        subprocess.run(
            [sys.executable, "-m", "gateway.cli", "tune", f"--model={model}", f"--state-dir={folder}"], check=True
        )
    return folder


@contextlib.contextmanager
def llama_server(
    model: Path, *, streams: int, context: int = CONTEXT_A_STREAM, flags: Sequence[str] = ()
) -> Iterator[Server]:
    """Run llama-server in its best configuration: one slot per stream, all cores. Raises ServerError, RivalError."""
    port = free_port()
    command = [str(program("llama-server")), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", str(cores()), "-np", str(streams), "-c", str(streams * context), *flags]
    began = time.perf_counter()
    with _running(command) as (process, log):
        _wait(process, log, lambda: _answers(f"http://127.0.0.1:{port}/health"))
        yield Server(port, psutil.Process(process.pid), time.perf_counter() - began)


@contextlib.contextmanager
def cache_settings(kind: str) -> Iterator[dict[str, Any]]:
    """Yield the settings for a cache in `sqlite`, the default, or in a separate `redis`. Raises ServerError."""
    if kind == "sqlite":
        yield {}
        return
    if shutil.which("redis-server") is None:
        raise ServerError("redis-server is missing: apt-get install redis-server")
    port = free_port()
    with _running(["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""]) as (process, log):
        _wait(process, log, lambda: "Ready to accept connections" in log.read_text(errors="replace"))
        yield {"cache": f"redis://127.0.0.1:{port}/0"}


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def leave_on_sigterm() -> None:
    """Let SIGTERM end this program like Ctrl-C, so that it stops the processes that it started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def environment() -> dict[str, str]:
    """Return the environment for servers, without settings of a gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SAMOVAR_")}


def stop(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Send SIGTERM, then SIGKILL after `seconds`, and return the exit code."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a process with its output in a log, and stop it at the end."""
    with tempfile.NamedTemporaryFile(prefix="samovar-bench-", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
        try:
            yield process, Path(log.name)
        finally:
            stop(process, STOP_SECONDS)


def _wait(process: subprocess.Popen[bytes], log: Path, look: Callable[[], Found | None]) -> Found:
    """Poll `look` until it returns a result, and return it. Raises ServerError."""
    began = time.perf_counter()
    while time.perf_counter() - began < START_SECONDS and process.poll() is None:
        if found := look():
            return found
        time.sleep(0.01)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise ServerError(f"the server did not become ready (exit code {process.poll()}):\n{tail}")


def _greeted(log: Path) -> int | None:
    """Return the port in the line that `samovar serve` prints when it listens."""
    found = re.search(r"http://\S+:(\d+)", log.read_text(errors="replace"))
    return int(found[1]) if found else None


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http
        return bool(answer.status == 200)
    return False
