"""The server under test: a gateway that can be killed and restarted on the same port and state, and its engines."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

from benchmarks.servers import ServerError, environment, free_port, stop
from engine import engines_of

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 45.0
"""Longer than the gateway waits for running answers."""
ORPHAN_SECONDS: Final = 10.0
UNLOAD_SECONDS: Final = 60.0
"""Timeout for unloading; idle engines are unloaded after a few seconds."""
SETTLE_SECONDS: Final = 20.0
"""Timeout for a gateway to become idle after the last client has left."""
MORE_FILES: Final = 8
"""Additional open files that are no leak: reopened connections to a store."""
MORE_MEMORY: Final = 1.10, 24 << 20
"""Memory growth that is no leak, as (factor, bytes): Python's arenas, and texts stored for clients to resume."""


@dataclass(frozen=True)
class Rest:
    """The resources of an idle gateway."""

    resident: int
    files: int
    engines: int
    orphans: int
    """Engines whose gateway has ended."""
    entries: int
    """Waiting and running requests, and connections."""

    def leaks(self, before: Self) -> list[str]:
        """Return a description of each resource that has grown since `before`."""
        factor, spare = MORE_MEMORY
        found = {
            f"{self.resident / 1e6:.0f} MB, {before.resident / 1e6:.0f} before": self.resident
            > before.resident * factor + spare,
            f"{self.files} open files, {before.files} before": self.files > before.files + MORE_FILES,
            f"{self.engines} engines, {before.engines} before": self.engines > before.engines,
            f"{self.orphans} engines without a gateway": self.orphans > 0,
            f"{self.entries} connections, or requests in queue or engine": self.entries > 0,
        }
        return [text for text, leaked in found.items() if leaked]


class House:
    """`samovar serve` on one port, which can be started repeatedly."""

    def __init__(self, state: Path, model: Path, *, log: Path, clock: Path | None = None, **settings: object) -> None:
        """Store conversations in `state`; with `clock`, shift the time of day by that file (see clockwork.py)."""
        self.state = state
        self.model = model
        self.port = free_port()
        self.log = log
        program = ["benchmarks.faults.clockwork", str(clock)] if clock else ["gateway.cli"]
        flags = {"port": self.port, "model": model, "state_dir": state, **settings}
        self._command = [sys.executable, "-m", *program, "serve"]
        self._command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._closed = False
        self._seen: set[psutil.Process] = set()

    @property
    def url(self) -> str:
        """Base URL for HTTP."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """URL of the WebSocket."""
        return f"ws://127.0.0.1:{self.port}/v1/responses"

    @property
    def gateway(self) -> psutil.Process:
        """The gateway's process."""
        assert self._process is not None, "it was started"  # noqa: S101
        return psutil.Process(self._process.pid)

    def start(self) -> Self:
        """Start the gateway and wait until it is ready. Raises ServerError."""
        with self._starting, self.log.open("ab") as log:
            if self._closed:
                raise ServerError("the house is closed")
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment())
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            if self._answers():
                return self
            time.sleep(0.02)
        raise ServerError(f"the gateway did not become ready:\n{self.log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """Send SIGKILL to the gateway alone: its engines must exit by themselves."""
        self.engines()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        if self._process is None or self._process.poll() is not None:
            return 0
        self.engines()
        return stop(self._process, STOP_SECONDS)

    def close(self) -> None:
        """Stop the gateway and kill remaining engines; later starts, also from other threads, are refused."""
        with self._starting:
            self._closed = True
        try:
            self.stop()
        finally:
            for engine in tuple(self._seen):
                with suppress(psutil.Error):
                    engine.kill()

    def engines(self) -> list[psutil.Process]:
        """Return the engine processes, which are also recorded to detect orphans."""
        found: list[psutil.Process] = []
        if self._process is not None:
            with suppress(psutil.Error):
                found = engines_of(self.gateway)
        self._seen.update(found)
        return found

    def prompt_workers(self) -> list[psutil.Process]:
        """Return the prompt workers, their host process first."""
        with suppress(psutil.Error):
            for child in self.gateway.children():
                if "gateway.prompts.worker" in child.cmdline():
                    return [child, *child.children()]
        return []

    def rest(self) -> Rest:
        """Return the gateway's resources after waiting for it to become idle."""
        until = time.monotonic() + SETTLE_SECONDS
        while (entries := self._entries()) and time.monotonic() < until:
            time.sleep(0.2)
        engines = self.engines()
        until = time.monotonic() + ORPHAN_SECONDS
        while (orphans := self._orphans()) and time.monotonic() < until:
            time.sleep(0.2)
        for orphan in orphans:
            with suppress(psutil.Error):
                orphan.kill()
        gateway = self.gateway
        return Rest(gateway.memory_info().rss, gateway.num_fds(), len(engines), len(orphans), entries)

    def wait_for_unload(self) -> None:
        """Wait until all idle engines are unloaded. Raises ServerError."""
        until = time.monotonic() + UNLOAD_SECONDS
        while self.engines():
            if time.monotonic() > until:
                raise ServerError(f"idle engines were not unloaded within {UNLOAD_SECONDS:.0f} s")
            time.sleep(0.2)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:  # noqa: S310 - http
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    def _entries(self) -> int:
        names = ("samovar_requests_waiting", "samovar_requests_running", "samovar_websocket_connections")
        return int(sum(map(self.metric, names)))

    def _orphans(self) -> list[psutil.Process]:
        mine = self.gateway.pid
        orphans = []
        for engine in tuple(self._seen):
            with suppress(psutil.Error):
                if engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE and engine.ppid() != mine:
                    orphans.append(engine)
                    continue
                if engine.is_running():
                    continue
            self._seen.discard(engine)
        return orphans

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
        return False

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()
