"""How long a gateway's event loop stands still, seen from outside, through a route that computes nothing.

A process of its own asks, since the one that sends the attacks is busy with them. Other processes make both wait for a
processor: the scheduler counts that time, and it is subtracted.
"""

from __future__ import annotations

import http.client
import select
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:  # the process that asks starts in a moment, without a client of OpenAI
    from tests.support.running import Gateway

PAUSE: Final = 0.005
LEAST: Final = 0.25
"""Seconds that a loop may stand still in any case: machines that run tests are busy."""
FACTOR: Final = 10


class Watchdog:
    """Asks `/healthz` again and again while the block runs."""

    def __init__(self, gateway: Gateway) -> None:
        """Watch a gateway that runs."""
        self.longest = 0.0
        """Seconds that the slowest answer took, without waits for a processor; known once the block has ended."""
        command = [sys.executable, "-m", "tests.support.watchdog", urlsplit(gateway.url).netloc]
        command.append(str(gateway.process.pid))
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Self:
        """Wait until it watches."""
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Stop watching."""
        self.longest = float(self._process.communicate()[0])


def idle(gateway: Gateway, seconds: float = 0.3) -> float:
    """Return the longest answer of a gateway that has nothing to do."""
    with Watchdog(gateway) as watchdog:
        time.sleep(seconds)
    return watchdog.longest


def bound(baseline: float) -> float:
    """Return how long a loop may stand still where `baseline` is its longest when idle."""
    return max(LEAST, FACTOR * baseline)


def watch(host: str, pid: str) -> float:
    """Ask until standard input is closed; return the longest answer's seconds without waits for a processor."""
    longest = 0.0
    print(flush=True)
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        began, delayed = time.monotonic(), delay(pid) + delay("self")
        with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        delayed = delay(pid) + delay("self") - delayed
        longest = max(longest, time.monotonic() - began - delayed)
    return longest


def delay(pid: str) -> float:
    """Return the seconds for which a process's main thread, which runs the event loop, has waited for a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


if __name__ == "__main__":
    print(watch(*sys.argv[1:]))
