"""Serves a gateway inside the test process, for tests that replace one of its parts or make it fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp

from gateway.transport.header_timeout import KEEP_ALIVE_SECONDS, HeaderTimeout
from gateway.transport.sockets import BoundedSocket


class Server(uvicorn.Server):
    """uvicorn that leaves the test's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """Serve `app` on a free port of 127.0.0.1; gives its URL."""
    config = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        proxy_headers=False,
        http=HeaderTimeout,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ws=BoundedSocket,
        timeout_graceful_shutdown=5,
    )
    server = Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
