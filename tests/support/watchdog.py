"""How long a gateway's event loop stands still, seen from outside, through a route that computes nothing.

A process of its own asks, since the one that sends the attacks is busy with them.
"""

from __future__ import annotations

import http.client
import select
import subprocess
import sys
import time
from contextlib import closing
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

PAUSE: Final = 0.005
LEAST: Final = 0.25
"""Seconds that a loop may stand still in any case: machines that run tests are busy."""
FACTOR: Final = 10


class Watchdog:
    """Asks `/healthz` again and again while the block runs."""

    def __init__(self, url: str) -> None:
        """Watch the gateway at `url`."""
        self.longest = 0.0
        """Seconds that the slowest answer took; known once the block has ended."""
        command = [sys.executable, "-m", "tests.support.watchdog", urlsplit(url).netloc]
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


def idle(url: str, seconds: float = 1.0) -> float:
    """Return the longest answer of a gateway that has nothing to do."""
    with Watchdog(url) as watchdog:
        time.sleep(seconds)
    return watchdog.longest


def bound(baseline: float) -> float:
    """Return how long a loop may stand still where `baseline` is its longest when idle."""
    return max(LEAST, FACTOR * baseline)


def watch(host: str) -> float:
    """Ask until standard input is closed; return the longest answer's seconds."""
    longest = 0.0
    print(flush=True)
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        began = time.monotonic()
        with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        longest = max(longest, time.monotonic() - began)
    return longest


if __name__ == "__main__":
    print(watch(sys.argv[1]))
