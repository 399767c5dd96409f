"""What a service manager is told: ready, stopping, and, for as long as the event loop turns, alive (sd_notify(3))."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Final

BEATS: Final = 3
"""Signs of life within the time after which the watchdog bites; two may come late."""


class Supervisor:
    """systemd, or whatever else named a socket in NOTIFY_SOCKET; without one nothing is said to anybody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Find the socket, and the time within which a sign of life is wanted."""
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._patience = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 if mine else 0.0
        self._heart: asyncio.Task[None] | None = None

    def ready(self, status: str) -> None:
        """It listens. From now on the running loop gives signs of life: one that hangs gives none."""
        self._say("READY=1", f"STATUS={status}")
        if self._address and self._patience:
            self._heart = asyncio.create_task(self._beat())

    def stopping(self, status: str) -> None:
        """It takes nothing new; signs of life go on, as the last answers may hang, too."""
        self._say("STOPPING=1", f"STATUS={status}")

    async def _beat(self) -> None:
        while True:
            self._say("WATCHDOG=1")
            await asyncio.sleep(self._patience / BEATS)

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
            speaker.setblocking(False)
            try:
                speaker.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return  # a manager that does not listen will draw its own conclusions
