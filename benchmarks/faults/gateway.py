"""The server under test: a gateway that can be killed and restarted on the same port and state, and its engines."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

from engine import module_command
from gateway.cli.launcher import GatewayProcess, LaunchError, free_port

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


class GatewayUnderTest(GatewayProcess):
    """`samovar serve` on a fixed port. It is killed and restarted, and all of its engines are observed."""

    def __init__(self, state: Path, model: Path, *, log: Path, clock: Path | None = None, **settings: object) -> None:
        """Store conversations in `state`; with `clock`, shift the time of day by that file (see clockwork.py)."""
        port = free_port()
        super().__init__(state, log=log, port=port, model=model, **settings)
        if clock is not None:
            self.command = module_command("benchmarks.faults.clockwork", str(clock))
        self.url = f"http://127.0.0.1:{port}"
        self.model = model
        self._starting = threading.Lock()
        self._closed = False
        self._seen: set[psutil.Process] = set()

    def start(self, *flags: str) -> Self:
        """Start the gateway, unless it is closed, and wait until it listens. Raises LaunchError."""
        with self._starting:
            if self._closed:
                raise LaunchError("the gateway is closed")
            return super().start(*flags)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code, that of SIGKILL if the gateway had to be killed."""
        self.engines()
        try:
            return super().stop(number)
        except LaunchError:
            return -signal.SIGKILL

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
        found = super().engines()
        self._seen.update(found)
        return found

    def prompt_workers(self) -> list[psutil.Process]:
        """Return the prompt workers, their host process first."""
        with suppress(psutil.Error):
            for child in self.process.children():
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
        gateway = self.process
        return Rest(gateway.memory_info().rss, gateway.num_fds(), len(engines), len(orphans), entries)

    def wait_for_unload(self) -> None:
        """Wait until all idle engines are unloaded. Raises LaunchError."""
        until = time.monotonic() + UNLOAD_SECONDS
        while self.engines():
            if time.monotonic() > until:
                raise LaunchError(f"idle engines were not unloaded within {UNLOAD_SECONDS:.0f} s")
            time.sleep(0.2)

    def _entries(self) -> int:
        names = ("samovar_requests_waiting", "samovar_requests_running", "samovar_websocket_connections")
        metrics = self.metrics()
        return int(sum(metrics.sum(name) or 0.0 for name in names))

    def _orphans(self) -> list[psutil.Process]:
        mine = self.process.pid
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
