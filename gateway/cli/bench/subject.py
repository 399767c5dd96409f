"""The gateway that is measured: a process of its own on a free port, with a state folder that goes with it."""

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
from gateway.config.settings import SQLITE, Settings
from gateway.models.catalogue import CATALOGUE, Entry

START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 20.0
_ADDRESS: Final = re.compile(r"http(://\S+:\d+)")


class BenchError(Exception):
    """It could not be measured; the text says why."""


@dataclass(frozen=True)
class Subject:
    """A gateway that takes requests."""

    process: psutil.Process
    address: str
    """Of the WebSocket."""
    began: float
    """When its process was started, in seconds of the monotonic clock."""
    ready_seconds: float
    _log: Path

    def engines(self) -> list[psutil.Process]:
        """Its engine processes."""
        return engines_of(self.process)

    def logged(self, event: str) -> dict[str, Any]:
        """The newest line of its log that tells of `event`, waited for. Raises BenchError."""
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            for line in reversed(self._log.read_bytes().splitlines()):
                with contextlib.suppress(msgspec.DecodeError):
                    entry = msgspec.json.decode(line)
                    if isinstance(entry, dict) and entry.get("event") == event:
                        return entry
            time.sleep(0.01)
        raise BenchError(f"the gateway's log tells nothing of {event!r}")


class Workshop:
    """Starts gateways with the user's model, cores, plan and cache, one after the other in one state folder."""

    def __init__(self, entry: Entry, settings: Settings, folder: Path) -> None:
        """Keep all in `folder`: nothing of what the user has is touched."""
        self._folder = folder
        self._command = module_command("gateway.cli", "serve", *_flags(entry, settings, folder / "state"))
        with contextlib.suppress(OSError):  # nobody tuned here
            shutil.copytree(settings.state_dir / "plans", folder / "state" / "plans")

    @contextlib.contextmanager
    def started(self, *, idle_unload: float = 0) -> Iterator[Subject]:
        """`samovar serve`, stopped at the end. Raises BenchError."""
        own = {name: value for name, value in environment().items() if not name.startswith("SAMOVAR_")}
        with (self._folder / "out").open("wb") as out, (self._folder / "log").open("wb") as log:
            began = time.monotonic()
            process = subprocess.Popen(
                [*self._command, f"--idle-unload={idle_unload}"],
                stdout=out,
                stderr=log,
                cwd=self._folder,  # where no samovar.toml lies
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
        """Where it listens, as soon as it says so."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if found := _ADDRESS.search((self._folder / "out").read_text(errors="replace")):
                return f"ws{found[1]}/v1/responses"
            time.sleep(0.005)
        said = (self._folder / "log").read_text(errors="replace").splitlines()
        reason = said[-1].removeprefix("samovar: ") if said else "it said nothing"
        raise BenchError(f"the gateway did not start: {reason}")


def _flags(entry: Entry, settings: Settings, state: Path) -> Iterator[str]:
    # By its name a model of the catalogue has its own sampling; by its path it would have another's.
    yield f"--model={settings.model if settings.model in CATALOGUE else entry.path}"
    yield "--port=0"
    yield f"--state-dir={state}"
    yield "--cache-ttl=60"  # what is left in a store of the user's goes soon
    for name in ("cores", "engines", "engine_memory", "context"):
        yield f"--{name.replace('_', '-')}={getattr(settings, name)}"
    if settings.cache != SQLITE:  # else a file in the state folder
        yield f"--cache={settings.cache}"
        yield from _key(settings.key_source)


def _key(source: Path | str) -> Iterator[str]:
    """A store of the user's knows the user's key and no other; one that is not there yet is not made here."""
    if isinstance(source, str):
        yield f"--cache-key={source}"
    elif source.exists():
        yield f"--cache-key={source.absolute()}"
