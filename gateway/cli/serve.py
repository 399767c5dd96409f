"""`samovar serve`: the gateway in the foreground, until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
import uvloop

from cache import StoreError
from engine import EngineError
from gateway.app import build
from gateway.catalogue import EMBEDDED, GET_QWEN, ModelNotAvailableError
from gateway.cli import CommandError
from gateway.prompt import TemplateError
from gateway.settings import Settings

GRACE_SECONDS: Final = 10
"""How long running answers may take to end after SIGTERM."""


class Server(uvicorn.Server):
    """uvicorn that says when it listens, and ends well on a signal instead of raising it again."""

    greeting = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            print(self.greeting, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for the end; a second one insists."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def run(settings: Settings) -> int:
    """Serve. Raises CommandError when that cannot begin, SettingsError where everybody could come in by accident."""
    settings.check_door()
    listener = _listen(settings)
    port = listener.getsockname()[1]
    settings = settings.model_copy(update={"port": port})
    try:
        app, _ = build(settings)
    except (ModelNotAvailableError, TemplateError, EngineError, StoreError) as error:
        raise CommandError(str(error)) from error
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=16 << 20,
        ws_per_message_deflate=False,  # it doubles a connection's memory for text that is sent once
        ws_ping_interval=50.0,  # under the 60 s of nginx and most NATs, at half the cost of the usual 20 s
        ws_ping_timeout=20.0,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = Server(config)
    server.greeting = f"Samovar: {settings.url} — open it in a browser, or run: samovar chat"
    if settings.model == EMBEDDED:
        server.greeting += f"\n{GET_QWEN}"
    uvloop.run(server.serve(sockets=[listener]))
    return 0


def _listen(settings: Settings) -> socket.socket:
    """Bind before anything is loaded, so that a taken port is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise CommandError(f"port: {settings.host}:{settings.port} can't be used: {error.strerror}") from error
    return listener
