"""How long the server waits for a request to be said: a connection that says nothing is closed."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_SECONDS: Final = 10.0
"""From a connection's beginning, or its last answer, to the end of the next request's head."""


class HeaderTimeout(H11Protocol):
    """uvicorn's HTTP, which by itself waits for ever for the rest of a head that was begun."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As uvicorn's."""
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._idle = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn names the subclass
        self._idle = True
        self._timer = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._stop()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Wait no more: a timer would keep this protocol's 10 KB beside each of many sockets that open at once."""
        self._stop()
        super().handle_websocket_upgrade(event)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Close what was between two requests at the last look, too; else look again later."""
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever uvicorn's types say
        asks = cycle is not None and not cycle.response_complete
        if self._idle and not asks:
            self.transport.close()
            return
        self._idle = not asks
        self._timer = self.loop.call_later(HEAD_SECONDS, self._look)
