"""The measured gateway: a process on a free port with a temporary state folder."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.cli.launcher import GatewayProcess
from gateway.config.setting_types import SQLITE
from gateway.config.settings import Settings
from gateway.models.catalogue import CATALOGUE, Entry

LOG_SECONDS: Final = 20.0
"""Timeout for a log entry of an event that has happened."""


class BenchError(Exception):
    """The measurement failed; the message says why."""


class MeasuredGateway(GatewayProcess):
    """A gateway with the user's model, cores, plan and cache, and its own state in `folder`."""

    def __init__(self, entry: Entry, settings: Settings, folder: Path) -> None:
        """Prepare the gateway. The user's state is not changed."""
        super().__init__(folder / "state", log=folder / "log", **dict(_settings(entry, settings)))
        self.folder = folder  # contains no samovar.toml
        with contextlib.suppress(OSError):  # no plan was measured here
            shutil.copytree(settings.state_dir / "plans", self.state / "plans")

    @contextlib.contextmanager
    def running(self, *, idle_unload: float = 0) -> Iterator[None]:
        """Run the gateway with an empty log for the duration of the context. Raises LaunchError."""
        self._log.unlink(missing_ok=True)
        self.start(f"--idle-unload={idle_unload}")
        try:
            yield
        finally:
            self.stop()

    def logged(self, event: str) -> dict[str, Any]:
        """Wait for the log event `event` and return its newest entry. Raises BenchError."""
        deadline = time.monotonic() + LOG_SECONDS
        while time.monotonic() < deadline:
            for line in reversed(self.log().splitlines()):
                with contextlib.suppress(msgspec.DecodeError):
                    entry = msgspec.json.decode(line)
                    if isinstance(entry, dict) and entry.get("event") == event:
                        return entry
            time.sleep(0.01)
        raise BenchError(f"the gateway did not log {event!r}")


def _settings(entry: Entry, settings: Settings) -> Iterator[tuple[str, object]]:
    # A catalogue model has its own sampling defaults only if it is given by name.
    yield "model", settings.model if settings.model in CATALOGUE else entry.path
    yield "preload", False  # starts and memory are measured from rest
    yield "cache_ttl", 60  # blocks left in the user's store expire soon
    for name in ("cores", "engines", "memory", "engine_memory", "context"):
        yield name, getattr(settings, name)
    if settings.cache != SQLITE:  # otherwise the cache is a file in the state folder
        yield "cache", settings.cache
        # The user's store requires the user's key. A missing key file is not created.
        key = settings.key_source
        if isinstance(key, str):
            yield "cache_key", key
        elif key.exists():
            yield "cache_key", key.absolute()
