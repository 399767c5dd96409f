"""Notifies a service manager with sd_notify(3): ready, stopping, and watchdog signals while the event loop runs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Final

BEATS: Final = 3
"""Watchdog signals per watchdog timeout, so that two may be late."""


class Supervisor:
    """The service manager that listens on NOTIFY_SOCKET, such as systemd. Without the variable nothing is sent."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read the socket and the watchdog timeout from `environment`."""
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._timeout = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 if mine else 0.0
        self._watchdog: asyncio.Task[None] | None = None

    def ready(self, status: str) -> None:
        """Report that the gateway accepts connections, and start watchdog signals. A hung event loop sends none."""
        self._notify("READY=1", f"STATUS={status}")
        if self._address and self._timeout:
            self._watchdog = asyncio.create_task(self._send_watchdog_signals())

    def stopping(self, status: str) -> None:
        """Report that the gateway is stopping. Watchdog signals continue, because the last responses may hang too."""
        self._notify("STOPPING=1", f"STATUS={status}")

    async def _send_watchdog_signals(self) -> None:
        while True:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(self._timeout / BEATS)

    def _notify(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return  # the manager does not listen; its watchdog will act if it expects signals
