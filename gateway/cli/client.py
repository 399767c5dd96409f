"""The line to a gateway: a WebSocket on a thread of its own, so that pings are answered while a person thinks.

What comes in lies in `events`, a queue to which a signal handler may add too.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import ssl
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State

from gateway.config.settings import Settings

OPEN_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 2.0
MAX_FRAME: Final = 64 << 20
"""Bytes: far over any response, and a bound all the same."""
CERTIFICATE: Final = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

Lost = Literal["lost"]
Interrupt = Literal["interrupt"]
Arrival = dict[str, Any] | Lost | Interrupt
"""An event of the gateway, or: the connection ended; somebody pressed Ctrl-C."""


class UnreachableError(Exception):
    """Nobody answers there; the text is the system's reason."""


class RefusedError(Exception):
    """Somebody answers, who does not let this client in, or speaks something else."""


class KeyNeededError(RefusedError):
    """The gateway wants an API key, or another one."""


class Client:
    """Connects, sends, and puts what arrives into `events`."""

    def __init__(self, settings: Settings) -> None:
        """Prepare for the gateway of `settings`; nothing is connected yet. Raises OSError for a TLS file."""
        self.events: SimpleQueue[Arrival] = SimpleQueue()
        self._url = settings.url.replace("http", "ws", 1) + "/v1/responses"
        self.key = settings.api_key
        """Said when it connects, unless empty."""
        self._tls = pinned(settings.tls_cert)
        self._connection: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as one can know before something is sent."""
        return self._connection is not None and self._connection.state is State.OPEN

    def open(self) -> None:
        """Connect, unless connected. Raises UnreachableError or RefusedError."""
        if not self.is_open:
            # What the old connection leaves, its end above all, must not be taken for the new one's.
            self.hang_up()
            self._await(self._open())

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; when the connection is gone, `events` says so."""
        self._await(self._send(msgspec.json.encode(message).decode()))

    def hang_up(self) -> None:
        """End the connection and forget what came from it; `open` makes another. A Ctrl-C meanwhile is kept."""
        self._await(self._hang_up())
        if "interrupt" in self.forget():
            self.events.put("interrupt")

    def forget(self) -> list[Arrival]:
        """Take all that lies in `events`."""
        taken: list[Arrival] = []
        with suppress(Empty):
            while True:
                taken.append(self.events.get_nowait())
        return taken

    def close(self) -> None:
        """End all; the line can't be used any more."""
        self._await(self._hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open(self) -> None:
        try:
            # No proxy: the gateway is on this machine or near it. No deflate: text in small frames does not shrink.
            self._connection = await connect(
                self._url,
                additional_headers=credentials(self.key),
                ssl=self._tls,
                proxy=None,
                compression=None,
                max_size=MAX_FRAME,
                open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS,
            )
        except InvalidStatus as error:
            kind = KeyNeededError if error.response.status_code == 401 else RefusedError
            raise kind(_reason(error.response.status_code, error.response.body)) from error
        except (InvalidHandshake, ssl.SSLError, EOFError) as error:
            raise RefusedError(str(error) or type(error).__name__) from error
        except TimeoutError as error:
            raise UnreachableError(f"no answer within {OPEN_SECONDS:g} s") from error
        except OSError as error:
            # asyncio's own words repeat the address, or are a list of several.
            raise UnreachableError(
                os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            ) from error
        self._reader = asyncio.create_task(self._read(self._connection))

    async def _read(self, connection: ClientConnection) -> None:
        with suppress(ConnectionClosed, msgspec.DecodeError):
            async for frame in connection:
                self.events.put(msgspec.json.decode(frame, type=dict[str, Any]))
        await connection.close()
        self.events.put("lost")

    async def _send(self, frame: str) -> None:
        if self._connection is not None:
            with suppress(ConnectionClosed):
                await self._connection.send(frame)

    async def _hang_up(self) -> None:
        if self._connection is not None and self._reader is not None:
            await self._connection.close()
            await self._reader
        self._connection = self._reader = None


def pinned(certificate: Path | None) -> ssl.SSLContext | None:
    """Trust in the gateway's own certificate and no other, whatever names it is made out to; None without TLS.

    Raises OSError or ValueError when the file can't be used.
    """
    if certificate is None:
        return None
    leaf = CERTIFICATE.search(certificate.read_text(errors="replace"))
    if leaf is None:
        raise ValueError(f"{certificate} holds no certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # The leaf alone, and as an anchor though it may not be self-signed: its issuer's other certificates are no gateway.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=leaf[0])
    return context


def credentials(key: str) -> dict[str, str]:
    """The header that says `key`, without what a paste may have brought along; none for an empty one."""
    key = re.sub("[^!-~]", "", key)
    return {"Authorization": f"Bearer {key}"} if key else {}


def get(settings: Settings, path: str, *, key: str = "", timeout: float = OPEN_SECONDS) -> tuple[int, Any]:
    """Status and JSON of a route of the gateway, None for what is no JSON. Raises OSError or HTTPException."""
    where = urlsplit(settings.url)
    host, port, tls = where.hostname or "", where.port or 0, pinned(settings.tls_cert)
    if tls is None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)
    try:
        connection.request("GET", path, headers=credentials(key))
        response = connection.getresponse()
        return response.status, _json(response.read(1 << 20))
    finally:
        connection.close()


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _reason(status: int, body: bytes | None) -> str:
    """What a refused upgrade says of itself."""
    answer = _json(body or b"")
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return f"{message} (HTTP {status})" if message else f"HTTP {status}"
