"""`samovar serve` as a child process, for `samovar bench`, the benchmarks and the tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Final, Self

import psutil

from engine import engines_of, environment, module_command
from gateway.cli.readings import Reading, Source

SAMOVAR: Final = module_command("gateway.cli")
"""The command line of `samovar`."""
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 45.0
"""Longer than the gateway waits for running answers."""
POLL_SECONDS: Final = 0.005
_URL: Final = re.compile(r"https?://\S+")


class LaunchError(Exception):
    """The gateway did not start, or did not stop. The message says why."""


class GatewayProcess:
    """`samovar serve`, which can be started repeatedly with the same settings, log and state folder."""

    def __init__(self, state: Path, *, log: Path, **settings: object) -> None:
        """Prepare a gateway with `settings`, on a free port unless they name one; nothing is started yet."""
        self.state = state
        self.flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        self.command = SAMOVAR
        self.environment = {name: value for name, value in environment().items() if not name.startswith("SAMOVAR_")}
        self.folder: Path | None = None
        """Working folder, in which the gateway finds a `samovar.toml`."""
        self.url = ""
        self.greeting = ""
        """What it printed to stdout when it began to listen."""
        self.ready_seconds = 0.0
        """Seconds from the last start of the process until it listened."""
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """URL of the WebSocket."""
        return f"{self.url.replace('http', 'ws', 1)}/v1/responses"

    @property
    def process(self) -> psutil.Process:
        """The process of a started gateway."""
        assert self._process is not None, "it was started"  # noqa: S101
        return psutil.Process(self._process.pid)

    def start(self, *flags: str) -> Self:
        """Start the gateway, this time with further `flags`, and wait until it listens. Raises LaunchError."""
        command = [*self.command, "serve", "--port=0", f"--state-dir={self.state}", *self.flags, *flags]
        began = time.monotonic()
        with tempfile.TemporaryFile() as output, self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=output, stderr=log, cwd=self.folder, env=self.environment)
            try:
                self._wait_for_greeting(self._process, output)
            except BaseException:
                self.kill()
                raise
        self.ready_seconds = time.monotonic() - began
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait, and return the exit code; 0 if the gateway was not running. Raises LaunchError."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until the gateway exits and return its exit code. Raises LaunchError if it had to be killed."""
        assert self._process is not None, "it was started"  # noqa: S101
        process, self._process = self._process, None
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise LaunchError(f"the gateway did not exit within {STOP_SECONDS:g} s, and was killed") from None

    def kill(self) -> None:
        """Kill the gateway, but not its engines, which exit by themselves."""
        self.stop(signal.SIGKILL)

    def engines(self) -> list[psutil.Process]:
        """Return the running engine processes."""
        return [] if self._process is None else engines_of(self.process)

    def log(self) -> str:
        """Return what the gateway has written to stderr since the first start."""
        return self._log.read_text(errors="replace")

    def metrics(self) -> Reading:
        """Return the current metrics. Raises UnreadableError."""
        return Source(self.url).read(time.monotonic())

    def metric(self, name: str, /, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels, 0 if there are none. Raises UnreadableError."""
        return self.metrics().sum(name, **labels) or 0.0

    def _wait_for_greeting(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            # `pread` leaves the offset, which the two processes share, where it is.
            greeting = os.pread(output.fileno(), 1 << 16, 0).decode(errors="replace")
            if url := _URL.search(greeting):
                self.greeting, self.url = greeting, url[0]
                return
            time.sleep(POLL_SECONDS)
        lines = self.log().split("\n")
        reason = next((line.removeprefix("samovar: ") for line in reversed(lines) if line), "its log is empty")
        raise LaunchError(f"the gateway did not start: {reason}")

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
