"""The measured gateway: a process on a free port with a temporary state folder."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from engine import engines_of, environment, module_command
from gateway.config.setting_types import SQLITE
from gateway.config.settings import Settings
from gateway.models.catalogue import CATALOGUE, Entry

START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 20.0
_ADDRESS: Final = re.compile(r"http(://\S+:\d+)")


class BenchError(Exception):
    """The measurement failed; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A running gateway."""

    process: psutil.Process
    address: str
    """URL of the WebSocket."""
    began: float
    """Start of the process, in seconds of the monotonic clock."""
    ready_seconds: float
    _log: Path

    def engines(self) -> list[psutil.Process]:
        """Return the gateway's engine processes."""
        return engines_of(self.process)

    def logged(self, event: str) -> dict[str, Any]:
        """Wait for the log event `event` and return its newest entry. Raises BenchError."""
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            for line in reversed(self._log.read_bytes().splitlines()):
                with contextlib.suppress(msgspec.DecodeError):
                    entry = msgspec.json.decode(line)
                    if isinstance(entry, dict) and entry.get("event") == event:
                        return entry
            time.sleep(0.01)
        raise BenchError(f"the gateway did not log {event!r}")


class Workshop:
    """Starts gateways with the user's model, cores, plan and cache, one after the other, in one state folder."""

    def __init__(self, entry: Entry, settings: Settings, folder: Path) -> None:
        """Use `folder` for all state; the user's state is not changed."""
        self._folder = folder
        self._command = module_command("gateway.cli", "serve", *_flags(entry, settings, folder / "state"))
        with contextlib.suppress(OSError):  # no plan was measured here
            shutil.copytree(settings.state_dir / "plans", folder / "state" / "plans")

    @contextlib.contextmanager
    def started(self, *, idle_unload: float = 0) -> Iterator[Subject]:
        """Run `samovar serve` for the duration of the context. Raises BenchError."""
        own = {name: value for name, value in environment().items() if not name.startswith("SAMOVAR_")}
        with (self._folder / "out").open("wb") as out, (self._folder / "log").open("wb") as log:
            began = time.monotonic()
            process = subprocess.Popen(
                [*self._command, f"--idle-unload={idle_unload}"],
                stdout=out,
                stderr=log,
                cwd=self._folder,  # contains no samovar.toml
                env=own,
            )
        try:
            address = self._address(process)
            seconds = time.monotonic() - began
            yield Subject(psutil.Process(process.pid), address, began, seconds, self._folder / "log")
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _address(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for the greeting and return the URL of the WebSocket."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if found := _ADDRESS.search((self._folder / "out").read_text(errors="replace")):
                return f"ws{found[1]}/v1/responses"
            time.sleep(0.005)
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        reason = lines[-1].removeprefix("samovar: ") if lines else "its log is empty"
        raise BenchError(f"the gateway did not start: {reason}")


def _flags(entry: Entry, settings: Settings, state: Path) -> Iterator[str]:
    # A catalogue model has its own sampling defaults only if it is given by name.
    yield f"--model={settings.model if settings.model in CATALOGUE else entry.path}"
    yield "--port=0"
    yield f"--state-dir={state}"
    yield "--cache-ttl=60"  # blocks left in the user's store expire soon
    for name in ("cores", "engines", "memory", "engine_memory", "context"):
        yield f"--{name.replace('_', '-')}={getattr(settings, name)}"
    if settings.cache != SQLITE:  # otherwise the cache is a file in the state folder
        yield f"--cache={settings.cache}"
        yield from _key(settings.key_source)


def _key(source: Path | str) -> Iterator[str]:
    """Yield the flag for the user's key, which the user's store requires. A missing key file is not created."""
    if isinstance(source, str):
        yield f"--cache-key={source}"
    elif source.exists():
        yield f"--cache-key={source.absolute()}"
