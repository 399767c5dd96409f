"""Both sides of a comparison as users run them: processes on free ports of 127.0.0.1, stopped by their own handle."""

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
"""Cells that llama-server gets for each stream: the longest load takes about 1 300."""


class ServerError(Exception):
    """A server did not come up; the text holds the end of what it said."""


@dataclass(frozen=True)
class Server:
    """A server that is ready to be asked."""

    port: int
    process: psutil.Process
    ready_seconds: float
    """From its start until it was ready."""

    def kill(self) -> None:
        """SIGKILL for all of it, as a power cut does it."""
        for process in [*self.process.children(recursive=True), self.process]:
            process.kill()

    def engines(self) -> list[psutil.Process]:
        """Samovar's engine processes."""
        return engines_of(self.process)


@contextlib.contextmanager
def samovar(
    model: Path, *, state: Path | None = None, tuned: Path | None = None, **settings: object
) -> Iterator[Server]:
    """`samovar serve` with the defaults that a user has, but for `settings`. Raises ServerError.

    Without `state`, what it keeps goes with it; it then begins with the plan that `tune` left in the folder `tuned`.
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
    """A state folder with nothing but this machine's plan for `model`, measured at the first call: about a minute."""
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
    """llama-server at its best for so many streams: a slot for each, all cores. Raises ServerError, RivalError."""
    port = free_port()
    command = [str(program("llama-server")), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", str(cores()), "-np", str(streams), "-c", str(streams * context), *flags]
    began = time.perf_counter()
    with _running(command) as (process, log):
        _wait(process, log, lambda: _answers(f"http://127.0.0.1:{port}/health"))
        yield Server(port, psutil.Process(process.pid), time.perf_counter() - began)


@contextlib.contextmanager
def cache_settings(kind: str) -> Iterator[dict[str, Any]]:
    """What `samovar` is given for a cache in `sqlite`, its default, or in a `redis` of its own. Raises ServerError."""
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
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def leave_on_sigterm() -> None:
    """Let SIGTERM end this program as Ctrl-C does: what it started is stopped on the way out."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def environment() -> dict[str, str]:
    """What a server is started in: no settings of a gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SAMOVAR_")}


def stop(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Ask it to leave, make it if it has not after so many seconds, and give its exit code."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process that writes into a log, asked to leave at the end and made to if it does not."""
    with tempfile.NamedTemporaryFile(prefix="samovar-bench-", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
        try:
            yield process, Path(log.name)
        finally:
            stop(process, STOP_SECONDS)


def _wait(process: subprocess.Popen[bytes], log: Path, look: Callable[[], Found | None]) -> Found:
    """What `look` finds, as soon as it finds something. Raises ServerError."""
    began = time.perf_counter()
    while time.perf_counter() - began < START_SECONDS and process.poll() is None:
        if found := look():
            return found
        time.sleep(0.01)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise ServerError(f"the server did not get ready (exit code {process.poll()}):\n{tail}")


def _greeted(log: Path) -> int | None:
    """The port in the line by which `samovar serve` says that it listens."""
    found = re.search(r"http://\S+:(\d+)", log.read_text(errors="replace"))
    return int(found[1]) if found else None


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http
        return bool(answer.status == 200)
    return False
