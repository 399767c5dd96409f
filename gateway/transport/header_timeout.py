"""HTTP connections: a timeout of request heads, and measured work of large bodies."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from gateway.transport.intake import intake_in
from gateway.transport.pacing import PIECE

HEAD_SECONDS: Final = 10.0
"""Seconds from opening a connection, or from the first byte of a later request, to the end of the request's head."""
KEEP_ALIVE_SECONDS: Final = 75
"""Seconds for which a connection may stay idle between two requests, as in nginx. Clients reuse idle connections for
some time; one that closes first loses no request."""


class HeaderTimeout(H11Protocol):
    """uvicorn's HTTP protocol with a timeout; uvicorn itself waits forever for the rest of a request head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take uvicorn's arguments."""
        super().__init__(*args, **kwargs)
        self._pacer = intake_in(self.app_state).pacer
        self._timer: asyncio.TimerHandle | None = None
        self._idle = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn names the subclass
        self._idle = True
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check)

    def data_received(self, data: bytes) -> None:
        """Receive data. Bodies are read in turns (`bodies.json_body`); this measures the work of one."""
        if len(data) <= PIECE:
            super().data_received(data)
            return
        with self._pacer.work():
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        super().connection_lost(exc)
        self._stop()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Stop the timer, which would hold this protocol's 10 KB in memory for each of many sockets opened at once."""
        self._stop()
        super().handle_websocket_upgrade(event)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        """Close the connection if it was idle at the previous check, too; otherwise schedule the next check."""
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever uvicorn's types say
        active = cycle is not None and not cycle.response_complete
        # Between two requests uvicorn's own timer runs, which it stops when the next head begins to arrive.
        active |= self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        if self._idle and not active:
            self.transport.close()
            return
        self._idle = not active
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check)
