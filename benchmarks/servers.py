"""Both sides of a comparison as users run them: processes on free ports of 127.0.0.1, stopped by their handle."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from benchmarks.machine import cache_folder, cores
from benchmarks.rival import program
from engine import engines_of, repacks_weights
from gateway.cli.launcher import SAMOVAR, GatewayProcess, LaunchError, free_port
from tests.support.redis_server import RedisServer

START_SECONDS: Final = 60.0
CONTEXT_A_STREAM: Final = 2048
"""Cells of llama-server per stream: the longest load takes about 1 300."""


@dataclass(frozen=True)
class Server:
    """A server that is ready for requests."""

    port: int
    process: psutil.Process
    ready_seconds: float
    """Time from start to ready."""

    @property
    def url(self) -> str:
        """Base URL for HTTP."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """URL of Samovar's WebSocket."""
        return f"ws://127.0.0.1:{self.port}/v1/responses"

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
    """Run `samovar serve` with the default settings, except `settings` and speculation. Raises LaunchError.

    Answers of the benchmarks' models may repeat themselves for ever, which speculation makes faster than any real text.
    Without `state` it uses a temporary state folder, with the plan from the folder `tuned` if given (see `tune`).
    """
    with tempfile.TemporaryDirectory(prefix="samovar-bench-") as folder:
        state = state or Path(folder) / "state"
        if tuned is not None:
            shutil.copytree(tuned, state, dirs_exist_ok=True)
        with GatewayProcess(
            state, log=Path(folder) / "log", model=model, **{"speculation": False, **settings}
        ) as gateway:
            yield Server(urlsplit(gateway.url).port or 0, gateway.process, gateway.ready_seconds)


def tune(model: Path) -> Path:
    """Return a state folder with this machine's plan for `model`, measured at the first call: about a minute."""
    folder = cache_folder() / f"tuned-{model.stem}"
    if not (folder / "plans").is_dir():
        subprocess.run([*SAMOVAR, "tune", f"--model={model}", f"--state-dir={folder}"], check=True)
    return folder


@contextlib.contextmanager
def llama_server(model: Path, *flags: str, streams: int, context: int = CONTEXT_A_STREAM) -> Iterator[Server]:
    """Run llama-server in its best configuration, and with `flags`. Raises LaunchError, RivalError.

    It has one slot per stream and all cores.
    """
    port = free_port()
    command = [str(program("llama-server")), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", str(cores()), "-np", str(streams), "-c", str(streams * context), *flags]
    if not repacks_weights():  # llama.cpp crashes on these processors, as engine/amx.py says
        command.append("--no-repack")
    began = time.perf_counter()
    with _running(command, f"http://127.0.0.1:{port}/health") as process:
        yield Server(port, psutil.Process(process.pid), time.perf_counter() - began)


@contextlib.contextmanager
def cache_settings(kind: str) -> Iterator[dict[str, Any]]:
    """Yield the settings for a cache in `sqlite`, the default, or in a separate `redis`."""
    if kind == "sqlite":
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="samovar-bench-") as folder, RedisServer(Path(folder)) as redis:
        yield {"cache": redis.url}


@contextlib.contextmanager
def _running(command: list[str], ready: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the context ends, once the URL `ready` responds. Raises LaunchError."""
    with tempfile.NamedTemporaryFile(prefix="samovar-bench-", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.perf_counter() + START_SECONDS
            while not _responds(ready):
                if time.perf_counter() > deadline or process.poll() is not None:
                    tail = "\n".join(Path(log.name).read_text(errors="replace").splitlines()[-15:])
                    raise LaunchError(f"{command[0]} did not become ready:\n{tail}")
                time.sleep(0.01)
            yield process
        finally:
            process.kill()
            process.wait()


def _responds(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - http
        return bool(response.status == 200)
    return False
